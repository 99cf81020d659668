"""What people look at in a browser (`alitok app`). Only `page.py` needs gradio (`pip install 'alitok[app]'`)."""
