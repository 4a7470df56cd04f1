"""The chat page of each model of a server, which other programs ask at the same time.

What this module does not know: how a page looks, and who may see it.
"""

import contextlib
from collections.abc import Mapping
from urllib.parse import quote

import gradio as gr
from fastapi import FastAPI
from fastapi.responses import RedirectResponse

from helpers.run.pipeline import VisionLanguagePipeline
from helpers.serve.demo import MAXIMUM_UPLOAD, build_page
from helpers.serve.look import CSS, THEME
from helpers.upstream.gradio import BelowAnotherServer, uploads_in

USER = "vlm"  # who logs in, with the server's key as password


def address_of(name: str) -> str:
    """Return where a model's page is."""
    return f"/page/{quote(name, safe='')}"


def build_pages(pipelines: Mapping[str, VisionLanguagePipeline]) -> dict[str, gr.Blocks]:
    """Return a page for each model; on each, the others can be chosen."""
    pages = {}
    for name, pipeline in pipelines.items():
        choices = [
            f"**{other}**" if other == name else f"[{other}](../{quote(other, safe='')}/)"
            for other in pipelines
        ]
        terms = f"Model: {', '.join(choices)}" if len(choices) > 1 else ""
        pages[name] = build_page(pipeline, title=f"Ask {name}", terms=terms)
    return pages


async def mount_pages(app: FastAPI, pages: Mapping[str, gr.Blocks], key: str | None) -> None:
    """Serve pages beside what an application serves already, also while it runs.

    With a `key`, whoever sees a page has to log in with it.
    """
    for name, page in pages.items():
        _redirect(app, address_of(name), f"{quote(name, safe='')}/")
        page.queue(default_concurrency_limit=None)  # the pipeline has a queue of its own
        with uploads_in(page.GRADIO_CACHE):
            gr.mount_gradio_app(
                app,
                page,
                address_of(name),
                auth=[(USER, key)] if key else None,
                auth_message=f"The user is {USER}, the password the server's key." if key else None,
                max_file_size=MAXIMUM_UPLOAD,
                footer_links=[],
                theme=THEME,
                css=CSS,
                root_path="",  # not GRADIO_ROOT_PATH, which hides where the page is mounted
                app_kwargs={"middleware": [(BelowAnotherServer, (), {})]},
            )
        # What would begin with the application begins now, and ends with the process.
        mounted = page.app
        await contextlib.AsyncExitStack().enter_async_context(
            mounted.router.lifespan_context(mounted)
        )
        page.run_startup_events()  # type: ignore[no-untyped-call]
        await page.run_extra_startup_events()  # type: ignore[no-untyped-call]
    _redirect(app, "/", f"{address_of(next(iter(pages))).removeprefix('/')}/")


def _redirect(app: FastAPI, path: str, relative: str) -> None:
    """Answer with an address beside `path`, since that may be below the one of another server."""
    app.add_api_route(path, lambda: RedirectResponse(relative), include_in_schema=False)
