"""The page in gradio: three tabs over `Desk`. Reactions to clicks are here; `Desk` makes what they show."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from threading import Event
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from alitok.app.desk import Desk
from alitok.app.opened import Opened
from alitok.app.settings import Settings, changed_tokens, first_settings, read_query
from alitok.common.errors import BadInput

HERE = Path(__file__).parent
SCRIPT, HEAD, STYLE = ((HERE / name).read_text("utf-8") for name in ("page.js", "address.js", "page.css"))
ADDRESS = "(query) => { alitok.keep(query); return []; }"
TAB = "() => { alitok.select('%s'); return []; }"
START = "(queries) => { alitok.start(queries); return []; }"
PROGRESS = gr.Progress()  # gradio finds it among the defaults of a function
NAMES = ("generator", "tokenizer", "label", "guidance", "power", "schedule", "temperature", "seed")  # of the controls
MODEL: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}  # a desk serves one caller at a time


def in_one_sentence(call: Callable[..., Any]) -> Callable[..., Any]:
    """Show a BadInput as gradio's error, without a traceback."""

    @functools.wraps(call)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except BadInput as error:
            raise gr.Error(escape(str(error)), duration=None, print_exception=False) from error

    return wrapped


def pictures(**more: Any) -> gr.HTML:
    """An empty element for pictures with tokens over them."""
    return gr.HTML("", js_on_load=SCRIPT, apply_default_css=False, **more)


def lines_of(shown: Sequence[Settings], tab: str) -> str:
    """The queries of all tabs for `address.js`, one a line; that of the open tab is the first."""
    return "\n".join(settings.query() for settings in sorted(shown, key=lambda settings: settings.tab != tab))


class Page:
    """The blocks of the page and what they do."""

    def __init__(self, opened: Opened) -> None:
        self.opened, self.desk = opened, Desk(opened)
        self.first = first_settings(opened)
        with gr.Blocks(title="alitok", analytics_enabled=False) as self.blocks:
            self.query = gr.Textbox(visible="hidden")  # of the last change
            self.address: dict[str, Any] = {"fn": None, "inputs": [self.query], "js": ADDRESS}
            with gr.Tabs(selected=self.first.tab) as self.tabs:
                if opened.generators:
                    with gr.Tab("Generate", id="generate") as generate:
                        self.generate()
                with gr.Tab("Reconstruct", id="reconstruct") as reconstruct:
                    self.reconstruct()
                with gr.Tab("Compare", id="compare") as compare:
                    self.compare()
            for tab in (*([generate] if opened.generators else []), reconstruct, compare):
                tab.select(None, js=TAB % tab.id)
            self.open()

    def generate(self) -> None:
        opened, first = self.opened, self.first
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                self.picture = pictures(elem_id="picture")
                undo = gr.Button("Undo choices", elem_id="undo", size="sm")
                self.command = gr.Textbox(label="The same picture as a command", buttons=["copy"], lines=2)
            with gr.Column(scale=2, min_width=300, elem_classes="controls"):
                self.label = gr.Dropdown(opened.labels(first.generator), label="Class")
                with gr.Row():
                    draw = gr.Button("Draw", variant="primary", elem_id="draw", min_width=90)
                    another = gr.Button("Next seed", elem_id="next", min_width=90)
                self.guidance = gr.Number(label="Guidance", minimum=0, step=0.25, info="0 = none")
                self.schedule = gr.Dropdown(opened.schedules(first.generator), label="Schedule of the guidance")
                with gr.Row():
                    self.power = gr.Number(label="Power", step=0.1, min_width=80)
                    self.temperature = gr.Number(label="Temperature", step=0.1, min_width=80)
                    self.seed = gr.Number(label="Seed", precision=0, min_width=80, elem_id="seed")
                self.generator = gr.Dropdown(list(opened.generators), label="Generator")
                self.decoder = gr.Dropdown(opened.partners(first.generator), label="Tokenizer that decodes")
        self.painted = gr.State(None)  # settings of the shown picture
        self.controls = [self.generator, self.decoder, self.label, self.guidance, self.power, self.schedule]
        self.controls += [self.temperature, self.seed]
        shown = [self.picture, self.command, self.query, self.painted]

        def of(values: tuple[Any, ...]) -> Settings:
            if any(value is None for value in values):
                raise BadInput("A setting is empty; fill it in and draw again.")
            return Settings("generate", **dict(zip(NAMES, values, strict=True)))

        def paint(settings: Settings) -> Iterator[tuple[Any, ...]]:
            try:
                command = settings.sample_command(opened)
                for html in self.desk.drawn(settings):
                    yield html, command, settings.query(), settings
            except BadInput as error:
                raise gr.Error(escape(str(error)), duration=None, print_exception=False) from error

        def drawn(*values: Any) -> Iterator[tuple[Any, ...]]:
            yield from paint(in_one_sentence(of)(values))

        def chosen(event: gr.EventData, painted: Settings) -> Iterator[tuple[Any, ...]]:
            place, ids = event._data["place"], tuple(event._data["ids"])
            yield from paint(replace(painted, tokens=changed_tokens(painted.tokens, place, ids)))

        def undone(painted: Settings | None, *values: Any) -> Iterator[tuple[Any, ...]]:
            yield from drawn(*values) if painted is None else paint(replace(painted, tokens=()))

        def other_generator(name: str) -> list[Any]:
            fresh = first_settings(opened, name)
            return self.shown_settings(fresh)[1:]

        address = self.address
        quiet: dict[str, Any] = {"show_progress": "hidden", **MODEL}
        draw.click(drawn, self.controls, shown, **quiet).then(**address)
        undo.click(undone, [self.painted, *self.controls], shown, **quiet).then(**address)
        next_seed = another.click(lambda seed: (seed or 0) + 1, self.seed, self.seed, show_progress="hidden")
        next_seed.then(drawn, self.controls, shown, **quiet).then(**address)
        self.picture.select(chosen, self.painted, shown, **quiet).then(**address)
        # not `input`: that also fires when a dropdown is left without a choice
        self.generator.select(other_generator, self.generator, self.controls[1:], show_progress="hidden")
        self.repaint, self.repainted = paint, shown

    def reconstruct(self) -> None:
        first = next(iter(self.opened.tokenizers))
        tokens = self.opened.tokenizers[first].num_tokens
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                self.files = gr.File(label="Pictures", file_count="multiple", height=150, elem_id="files")
            with gr.Column(scale=1, min_width=280):
                self.tokenizer = gr.Dropdown(list(self.opened.tokenizers), label="Tokenizer")
                self.keep = gr.Slider(1, tokens, tokens, step=1, label="First tokens", elem_id="keep")

        def neighbors(asked: dict[str, Any]) -> Any:  # gradio sets attributes on functions, which methods do not allow
            return self.desk.neighbors(asked["tokenizer"], asked["code"])

        self.rebuilt = pictures(elem_id="rebuilt", server_functions=[neighbors])
        self.back = gr.Button("Undo replaced tokens", elem_id="back", size="sm")
        self.again = gr.Textbox(label="The same pictures as a command", buttons=["copy"])
        self.replaced = gr.State({})
        inputs, shown = [self.files, self.tokenizer, self.keep], [self.rebuilt, self.again, self.query, self.replaced]

        @in_one_sentence
        def rebuilt(
            files: Any, tokenizer: str, keep: int, replaced: Any = None, progress: Any = PROGRESS
        ) -> tuple[Any, ...]:
            total = self.opened.tokenizers[tokenizer].num_tokens
            count = None if keep >= total else int(keep)
            settings = Settings("reconstruct", "", tokenizer, keep=count)
            html, command = self.desk.rebuilt(
                files or [], settings, replaced or {}, lambda done, all_, name: progress((done, all_), desc=name)
            )
            return html, command, settings.query(), replaced or {}

        def other_files(files: Any, tokenizer: str, keep: int, progress: Any = PROGRESS) -> tuple[Any, ...]:
            return rebuilt(files, tokenizer, keep, None, progress)

        def same_files(files: Any, tokenizer: str, keep: int, replaced: Any) -> tuple[Any, ...]:
            return rebuilt(files, tokenizer, keep, replaced)

        def chosen(event: gr.EventData, files: Any, tokenizer: str, keep: int, replaced: Any) -> tuple[Any, ...]:
            data = event._data
            try:
                more = self.desk.with_replaced(tokenizer, replaced, data["picture"], data["place"], tuple(data["ids"]))
            except BadInput as error:  # the pictures stay as they are
                gr.Warning(escape(str(error)), duration=None)
                return (gr.skip(),) * len(shown)
            return rebuilt(files, tokenizer, keep, more)

        def length(tokenizer: str) -> Any:
            total = self.opened.tokenizers[tokenizer].num_tokens
            return gr.Slider(1, total, total, step=1)

        address = self.address
        for event in (self.files.change, self.back.click):
            event(other_files, inputs, shown, **MODEL).then(**address)
        switched = self.tokenizer.select(length, self.tokenizer, self.keep, show_progress="hidden")
        switched.then(other_files, inputs, shown, **MODEL).then(**address)
        quiet: dict[str, Any] = {"show_progress": "hidden", **MODEL}
        moved = self.keep.input(same_files, [*inputs, self.replaced], shown, trigger_mode="always_last", **quiet)
        moved.then(**address)
        self.rebuilt.select(chosen, [*inputs, self.replaced], shown, **quiet).then(**address)

    def compare(self) -> None:
        opened, pairs = self.opened, self.desk.pair_names()
        names = list(opened.tokenizers)
        self.through = gr.CheckboxGroup(names, value=names, label="Tokenizers", elem_id="tokenizers", render=False)
        self.comparing: list[Any] = []
        if pairs:
            gr.Markdown("### Generators: the same class and seed")
            classes = list(dict.fromkeys(name for own in opened.generators for name in opened.labels(own)))
            chosen = gr.CheckboxGroup(pairs, value=pairs, label="Generator + tokenizer", elem_id="pairs")
            with gr.Row():
                label = gr.Dropdown(classes, value=self.first.label, label="Class", min_width=120)
                seed = gr.Number(self.first.seed, label="Seed", precision=0, min_width=90)
                guidance = gr.Number(None, label="Guidance", placeholder="card's", min_width=90)
            go = gr.Button("Draw all", variant="primary", elem_id="compare")
            drawn = gr.HTML("", apply_default_css=False, elem_id="compared")
            self.comparing = [chosen, label, seed, guidance]

            @in_one_sentence
            def generators(
                names: list[str],
                label: str,
                seed: int | None,
                guidance: float | None,
                tokenizers: list[str],
                progress: Any = PROGRESS,
            ) -> tuple[str, str]:
                html = self.desk.compared_generators(
                    names, label, seed or 0, guidance, lambda done, all_, name: progress((done, all_), desc=name)
                )
                return html, self.desk.comparison(names, label, seed or 0, guidance, tokenizers).query()

            self.redraw_all, self.redrawn = generators, [drawn, self.query]
            clicked = go.click(generators, [*self.comparing, self.through], self.redrawn, **MODEL)
            clicked.then(**self.address)
        gr.Markdown("### Tokenizers: the same picture")
        self.through.render()
        file = gr.File(label="Picture", height=130, elem_id="file")
        shown = gr.HTML("", apply_default_css=False, elem_id="through")

        @in_one_sentence
        def tokenizers(
            names: list[str],
            path: str | None,
            pairs: list[str],
            label: str,
            seed: int | None,
            guidance: float | None,
            progress: Any = PROGRESS,
        ) -> tuple[str, str]:
            query = self.desk.comparison(pairs, label, seed or 0, guidance, names).query()
            if path is None:
                return "", query
            html = self.desk.compared_tokenizers(
                names, path, lambda done, all_, name: progress((done, all_), desc=name)
            )
            return html, query

        inputs = [self.through, file, *(self.comparing or map(gr.State, ([], "", 0, None)))]
        for event in (file.change, self.through.input):
            event(tokenizers, inputs, [shown, self.query], **MODEL).then(**self.address)

    def shown_settings(self, settings: Settings) -> list[Any]:
        """Values for the controls of the tab Generate."""
        generator = settings.generator
        return [
            gr.Dropdown(value=generator),
            gr.Dropdown(self.opened.partners(generator), value=settings.tokenizer),
            gr.Dropdown(self.opened.labels(generator), value=settings.label),
            settings.guidance,
            settings.power,
            gr.Dropdown(self.opened.schedules(generator), value=settings.schedule),
            settings.temperature,
            settings.seed,
        ]

    def open(self) -> None:
        """Apply the settings in the address when the page loads, and draw."""
        opened, has_generator = self.opened, bool(self.opened.generators)
        tab, queries = gr.State(""), gr.Textbox(visible="hidden")
        outputs = [queries, tab, self.tabs, self.tokenizer, self.keep, self.through]
        outputs += [*self.controls, self.painted, *self.comparing] if has_generator else []

        def restored(query: str) -> list[Any]:
            settings, refused = read_query(query, opened)
            if refused:
                gr.Warning(escape(" ".join(refused[:5])), duration=None)  # a message is HTML
            pairs = [name for name in settings.models if name in self.desk.pair_names()]
            through = [name for name in settings.models if name in opened.tokenizers] or list(opened.tokenizers)
            total = opened.tokenizers[settings.tokenizer].num_tokens
            keep = gr.Slider(1, total, settings.keep or total, step=1)
            pairs = pairs or self.desk.pair_names()
            guidance = settings.guidance if settings.tab == "compare" else None
            values = [settings.tab, gr.Tabs(selected=settings.tab), settings.tokenizer, keep, through]
            shown = [Settings("reconstruct", "", settings.tokenizer, keep=settings.keep)]
            shown.append(self.desk.comparison(pairs, settings.label, settings.seed, guidance, through))
            if not has_generator:
                return [lines_of(shown, settings.tab), *values]
            own = first_settings(opened, settings.generator)  # for a comparison, which may have no guidance
            painted = replace(
                settings,
                tab="generate",
                tokenizer=settings.tokenizer if settings.tokenizer in opened.partners(own.generator) else own.tokenizer,
                guidance=own.guidance if settings.guidance is None else settings.guidance,
                keep=None,
                models=(),
            )
            lines = lines_of([*shown, painted], settings.tab)
            compared = [pairs, settings.label, settings.seed, guidance]
            return [lines, *values, *self.shown_settings(painted), painted, *compared]

        def all_if_open(tab: str, *values: Any) -> Any:
            return self.redraw_all(*values) if tab == "compare" else (gr.skip(), gr.skip())

        loaded = self.blocks.load(restored, self.query, outputs, js="() => alitok.opened", show_progress="hidden")
        loaded.then(None, [queries], js=START)
        if has_generator:
            painted = loaded.then(self.repaint, self.painted, self.repainted, show_progress="hidden", **MODEL)
            painted.then(all_if_open, [tab, *self.comparing, self.through], self.redrawn, **MODEL)


def serve(opened: Opened, host: str, port: int | None, names: Sequence[str] = ("*",)) -> None:
    """Serve the page until Ctrl-C.

    Args:
        names: host names that requests may use. Without this check, a site that points its own name at this machine
            could read the page.

    Raises:
        BadInput: the port is taken, or none of gradio's ports is free.
    """
    page = Page(opened)
    sans = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Arial", "sans-serif"]
    mono = ["ui-monospace", "Menlo", "Consolas", "monospace"]
    theme = gr.themes.Default(primary_hue="blue", font=sans, font_mono=mono)  # its own fonts come from another host
    page.blocks.queue(api_open=False)
    try:
        page.blocks.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            footer_links=[],
            ssr_mode=False,
            max_file_size="50mb",
            theme=theme,
            app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=list(names))]},
            css=STYLE,
            head=f"<script>{HEAD}</script>",
            enable_monitoring=False,
        )
    except OSError as error:
        taken = f"Every port that gradio tries on {host}" if port is None else f"{host}:{port}"
        raise BadInput(f"{taken} is taken; choose another --port.") from error
    number, everywhere = page.blocks.server_port, host in ("0.0.0.0", "::")
    others = f"; others reach it at port {number} of this machine's addresses" if everywhere else ""
    print(f"The app is at http://{'127.0.0.1' if everywhere else host}:{number}/{others} (Ctrl-C ends it).", flush=True)
    try:
        Event().wait()  # gradio's blocking call swallows Ctrl-C
    finally:
        page.blocks.close(verbose=False)
