"""The browser app (`alitok app`). Only `page.py` needs gradio (`pip install 'alitok[app]'`)."""
