"""A program that asks launch/app.py, as a browser's page would."""

import http.client
import io
import json
from typing import Any

from PIL import Image

BOUNDARY = "----a-boundary"
KIND = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def photo(size: tuple[int, int] = (96, 64), kind: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    """A picture with nothing on it, in a file's bytes."""
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind, **options)
    return file.getvalue()


def form(photo: bytes | None = None, text: str | None = None, name: str = "photo.png") -> bytes:
    """A form's body; None leaves a field out."""
    body = b""
    if photo is not None:
        body += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="photo"; filename="{name}"\r\n\r\n'.encode()
        body += photo + b"\r\n"
    if text is not None:
        body += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="text"\r\n\r\n{text}\r\n'.encode()
    return body + f"--{BOUNDARY}--\r\n".encode()


def ask(
    port: int, path: str, body: Any = None, headers: dict[str, str] = KIND, method: str = "POST", **options: Any
) -> tuple[int, Any]:
    """The status, and what was answered."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, headers, **options)
        response = connection.getresponse()
        content = response.read()
        is_json = response.headers.get_content_type() == "application/json"
        return response.status, json.loads(content) if is_json else content.decode()
    finally:
        connection.close()
