"""Files of web servers, by fsspec: http:// and https://.

A request is repeated a few times where a server is busy, away or sends less than it says. A server
that could not be reached once is not waited for again.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import aiohttp
import fsspec
from fsspec.asyn import sync
from pyarrow import fs

from conr_ray.data.decoding import MOST_BYTES
from conr_ray.data.sources.files import FoundFile, Location, whole
from conr_ray.errors import UserError, one_line
from conr_ray.storage.patience import patient

# Seconds: until a server takes the connection, and that it may be silent; of one answer in all.
CONNECT_S, SILENT_S, TOTAL_S = 10.0, 30.0, 300.0
_MOST_FOLDERS = 100_000
_CHUNK = 2**20
_SAFE = "/:@!$&'()*+,;=~"
# Servers that did not take a connection, however often they were asked.
_away: set[str] = set()


@dataclass(frozen=True)
class WebLocation(Location):
    """A file, or a folder that its server lists as a page of links; `path` is the URL."""

    @property
    def identity(self) -> str:
        """The URL without a user and a password."""
        return self.uri

    @property
    def uri(self) -> str:
        """The URL without a user and a password."""
        parts = urlsplit(self.path)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()

    def kind(self) -> fs.FileType:
        """A page is a folder, if its URL does not end as that of a file."""
        try:
            answer = self._asked(self.path, 0)
        except FileNotFoundError:
            return fs.FileType.NotFound
        last = urlsplit(self.path).path.rpartition("/")[2]
        is_page = answer.kind == "text/html" and "." not in last
        return fs.FileType.Directory if is_page else fs.FileType.File

    def path_of(self, name: str) -> str:
        """The URL of a file below this folder."""
        return f"{self.path.rstrip('/')}/{quote(name, _SAFE)}" if name else self.path

    def text_of(self, name: str) -> str:
        """Its URL."""
        return self.path_of(name)

    def file(self) -> FoundFile:
        """What tells one version of the file from the next stands for the time."""
        answer = self._asked(self.path, 0)
        return FoundFile("", answer.size, zlib.crc32(answer.version.encode()))

    def files_below(self, folder: str = "") -> list[FoundFile]:
        """All files that pages link to, below this one; their sizes and times are not known."""
        root = f"{self.path.rstrip('/')}/"
        pages = [f"{self.path_of(folder).rstrip('/')}/"]
        known, found = set(pages), set[str]()
        while pages:
            try:
                links = self._repeated(_web().ls)(pages.pop(), detail=False)
            except FileNotFoundError:
                continue
            for link in links:
                # Pages also link to themselves in another order, and to what is around them.
                url = link.partition("#")[0]
                if not url.startswith(root) or "?" in url or "/../" in url or url in known:
                    continue
                known.add(url)
                if not url.endswith("/"):
                    found.add(unquote(url[len(root) :], errors="surrogateescape"))
                elif len(known) < _MOST_FOLDERS:
                    pages.append(url)
        return [FoundFile(name, 0, 0) for name in sorted(found)]

    def chunks(self, start: int) -> Iterator[bytes]:
        """What is in this file from a byte on; servers need not know how to begin there."""
        files = _web()
        headers = {"Range": f"bytes={start}-"} if start else {}
        skip = start
        try:
            session = sync(files.loop, files.set_session)
            asked = session.get(files.encode_url(self.path), headers=headers, timeout=_timeout(0))
            answer = sync(files.loop, asked.__aenter__)
            try:
                if answer.status == 416:
                    return
                if answer.status >= 400:
                    raise _refusal(answer.status, answer.reason or "")
                skip = 0 if answer.status == 206 else start
                while chunk := sync(files.loop, answer.content.read, _CHUNK):
                    yield chunk[skip:]
                    skip = max(0, skip - len(chunk))
            finally:
                answer.close()
        except aiohttp.ClientError as error:
            raise _as_os_error(error) from None
        except TimeoutError as error:
            raise _as_os_error(error) from None

    def _read(self, name: str, size: int) -> bytes:
        return whole(self._get(self.path_of(name), MOST_BYTES).data, size)

    def _head(self, name: str, size: int) -> bytes:
        return self._get(self.path_of(name), size, is_part=True).data

    def _reached(self, call: Callable[..., Any]) -> Callable[..., Any]:
        return call

    def read(self, name: str, size: int = 0) -> bytes:
        """The content of the file; see `Location.read`."""
        data: bytes = self._repeated(self._read)(name, size)
        return data

    def head(self, name: str, size: int) -> bytes:
        """The first bytes of the file, if it is there."""
        data: bytes = self._repeated(self._head)(name, size)
        return data

    def _asked(self, url: str, size: int) -> _Answer:
        answer: _Answer = self._repeated(self._get)(url, size, is_part=True)
        return answer

    def _repeated(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, repeated after waits; errors of servers are OSErrors."""
        server = urlsplit(self.path).netloc

        def told(*args: Any, **kwargs: Any) -> Any:
            try:
                answer = call(*args, **kwargs)
            except OSError as error:
                raise _as_os_error(error) from None
            except aiohttp.ClientError as error:
                raise _as_os_error(error) from None
            _away.discard(server)
            return answer

        def asked(*args: Any, **kwargs: Any) -> Any:
            try:
                return patient(told, is_local=server in _away)(*args, **kwargs)
            except ConnectionError:
                _away.add(server)
                raise

        return asked

    def _get(self, url: str, most: int, *, is_part: bool = False) -> _Answer:
        files = _web()
        answer: _Answer = sync(files.loop, _get, files, url, most, is_part)
        return answer


@dataclass(frozen=True)
class _Answer:
    """What a server has sent: bytes, and what it says of them."""

    data: bytes
    size: int
    kind: str
    version: str


async def _get(files: Any, url: str, most: int, is_part: bool) -> _Answer:
    """At most so many bytes of a file, which are all of it unless `is_part`."""
    session = await files.set_session()
    async with session.get(files.encode_url(url)) as answer:
        if answer.status >= 400:
            raise _refusal(answer.status, answer.reason or "")
        size = answer.content_length or 0
        data = bytearray()
        if not is_part and size > most:
            raise ValueError(f"{size:,} bytes, more than {most:,}")
        while len(data) <= most and most:
            part = await answer.content.read(min(2**16, most + 1 - len(data)))
            if not part:
                break
            data += part
        if len(data) > most and not is_part:
            raise ValueError(f"more than {most:,} bytes")
        headers = answer.headers
        version = headers.get("ETag", "") + headers.get("Last-Modified", "")
        return _Answer(bytes(data[:most]), size, answer.content_type, version)


def _refusal(status: int, reason: str) -> OSError:
    told = f"HTTP status {status} {reason}".rstrip()
    if status in (404, 410):
        return FileNotFoundError(told)
    return PermissionError(told) if status in (401, 403) else OSError(told)


def _as_os_error(error: Exception) -> OSError:
    if isinstance(error, TimeoutError):
        return TimeoutError(f"no answer within {SILENT_S:g} s")
    if isinstance(error, aiohttp.ClientConnectorError):
        return ConnectionError(one_line(error))
    if isinstance(error, aiohttp.ClientResponseError):
        return _refusal(error.status, error.message)
    return error if isinstance(error, OSError) else OSError(one_line(error))


def _timeout(total_s: float) -> aiohttp.ClientTimeout:
    """With at most so long for an answer in all; 0 for any time."""
    return aiohttp.ClientTimeout(total_s or None, sock_connect=CONNECT_S, sock_read=SILENT_S)


@cache
def _web() -> Any:
    """Fsspec's file system of web servers: one for a process, whose connections are kept."""
    # Proxies are those of the environment.
    kept = {"timeout": _timeout(TOTAL_S), "trust_env": True}
    return fsspec.filesystem("http", simple_links=False, client_kwargs=kept)


def web_location(text: str) -> WebLocation:
    """The place of a URL; nothing is asked yet.

    Raises:
        UserError: it names no server.
    """
    if not urlsplit(text).hostname:
        raise UserError(f"data.path={text}: it names no server; write https://server/file")
    return WebLocation(text, fs.PyFileSystem(fs.FSSpecHandler(_web())), text)
