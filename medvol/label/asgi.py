"""``medvol.label.asgi:app``, what uvicorn serves: MONAI Label's web app behind our guard."""

from __future__ import annotations

import logging
import os
from typing import Any

from monailabel.app import app as inner  # pyright: ignore[reportMissingImports]
from monailabel.interfaces.exception import (  # pyright: ignore[reportMissingImports]
    MONAILabelException,
)
from monailabel.interfaces.utils.app import (  # pyright: ignore[reportMissingImports]
    app_instance,
)
from starlette.responses import (  # pyright: ignore[reportMissingImports]
    HTMLResponse,
    JSONResponse,
)
from starlette.routing import Route  # pyright: ignore[reportMissingImports]

from medvol.core.errors import MedvolError, MissingInputError, error_line
from medvol.label.guard import Guard
from medvol.label.page import start_page

logger = logging.getLogger(__name__)


def _error_response(_request: Any, error: Exception) -> JSONResponse:
    """One line that names the fault, where MONAI Label answers a bare 500."""
    if isinstance(error, MONAILabelException):
        return JSONResponse({"detail": str(getattr(error, "msg", error))}, status_code=400)
    line = error_line(error)
    if line is None:
        logger.exception("the request failed", exc_info=error)
        return JSONResponse({"detail": f"{type(error).__name__}: {error}"}, status_code=500)
    logger.warning("rejected: %s", line)
    status = 404 if isinstance(error, MissingInputError) else 422
    return JSONResponse({"detail": line}, status_code=status)


def _start(request: Any) -> HTMLResponse:
    """Our page in place of MONAI Label's, which is blank without a network."""
    app = app_instance()
    url = str(request.base_url).rstrip("/")
    labelled = app.datastore().get_labeled_images()
    return HTMLResponse(start_page(app.info(), app.scores(), labelled, url))


def _hosts() -> tuple[str, ...]:
    return tuple(name for name in os.environ.get("MEDVOL_LABEL_HOSTS", "").split(",") if name)


for _kind in (MONAILabelException, MedvolError, Exception):
    inner.add_exception_handler(_kind, _error_response)
inner.router.routes.insert(0, Route("/", _start))
app = Guard(
    inner,
    _hosts(),
    os.environ.get("MEDVOL_LABEL_PASSWORD"),
    os.environ.get("MEDVOL_LABEL_TOKEN"),
)
