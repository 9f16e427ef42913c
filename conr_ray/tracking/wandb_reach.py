"""Whether W&B answers: asked once, by the command, for all of its trials and workers."""

from __future__ import annotations

import base64
import json
import shlex
import ssl
import threading
import urllib.error
import urllib.request

from conr_ray.config import TrackingConfig
from conr_ray.remedies import described
from conr_ray.tracking.wandb_settings import WandbSettings, base_url, find_key, wandb_mode

_WAIT_S = 3.0
_QUESTION = json.dumps({"query": "query Viewer { viewer { id } }"}).encode()


def reached_settings(
    config: TrackingConfig, uri: str, *, of_search: bool
) -> tuple[WandbSettings, str | None]:
    """How to log, and a message for the user if that may surprise.

    A server that does not answer in a few seconds, or refuses the key, is not asked again: logging
    is offline and sparing, and the message says how to upload later.

    Args:
        config: of the run, or the search.
        uri: directory of the run or the search.
        of_search: whether it is that of a search.
    """
    mode, note = wandb_mode(config)
    if mode != "online":
        return WandbSettings(mode), note
    fault = _answer(base_url(), find_key() or "")
    if fault is None:
        return WandbSettings(mode), note
    told = f"W&B: {base_url()} {fault}: logging offline; {_upload(uri, of_search)}"
    return WandbSettings("offline", sparing=True), told


def _upload(uri: str, of_search: bool) -> str:
    folder = "." if "://" in uri else shlex.quote(uri)
    folders = [folder, f"{folder}/trials/*"] if of_search else [folder]
    command = f"wandb sync {' '.join(f'{one}/wandb/offline-run-*' for one in folders)}"
    copied = f" in a copy of {uri}" if "://" in uri else ""
    return f"to upload later: {command}{copied}"


def _answer(url: str, key: str) -> str | None:
    """What is wrong with the server's answer, or None."""
    found: list[str | None] = []
    # Looking up a name, or a slow answer, has no other limit.
    thread = threading.Thread(target=lambda: found.append(_ask(url, key)), daemon=True)
    thread.start()
    thread.join(_WAIT_S)
    return found[0] if found else f"does not answer within {_WAIT_S:.0f} s"


def _ask(url: str, key: str) -> str | None:
    login = base64.b64encode(f"api:{key}".encode()).decode()
    headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
    try:
        request = urllib.request.Request(f"{url}/graphql", _QUESTION, headers)
        urllib.request.urlopen(request, timeout=2 * _WAIT_S).close()
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return "refuses the key (run `wandb login --relogin`)"
        return f"answers {error.code}" if error.code >= 500 else None
    except urllib.error.URLError as error:
        # W&B may trust certificates that Python does not.
        if isinstance(error.reason, ssl.SSLError):
            return None
        reason = error.reason
        told = described(reason) if isinstance(reason, BaseException) else str(reason)
        return f"does not answer ({told})"
    except Exception as error:
        return f"does not answer ({described(error)})"
    return None
