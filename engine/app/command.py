"""What launch/app.py does: an address first, as it is quick to refuse, then the models, then the page."""

import errno
import ipaddress
import os
import signal
import socket
from typing import TYPE_CHECKING, Any, NoReturn

from engine.app.flags import AppConfig
from engine.distributed.leaving import leave, say
from engine.errors import UserError
from engine.importing import check_packages, heavy_imports

if TYPE_CHECKING:
    from engine.inference.pretrained import Pretrained

PACKAGES = ("starlette", "uvicorn", "python-multipart", "jinja2")


def run(config: AppConfig) -> NoReturn:
    """Serve until Ctrl-C or SIGTERM, which end the program at once with code 0.

    Raises:
        UserError: if a package lacks, the address can't be served at, or a model can't be loaded.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: leave(code=0))
    check_packages("this page", *PACKAGES)
    listener = listen(config.host, config.port)
    with heavy_imports():
        from engine.app.connection import build_server
        from engine.app.server import build_app
    app = build_app(config, load_models(config))
    where, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(where.partition("%")[0])
    if not address.is_loopback:
        say(f"warning: whoever reaches {config.host} can use this page, without a password; --host 127.0.0.1 is safe")
    name = socket.gethostname() if address.is_unspecified else config.host
    print(f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}", flush=True)
    build_server(app, config.max_seconds).run(sockets=[listener])
    leave(code=0)


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections from now on.

    Raises:
        UserError: if there is no such address, or it is taken.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (socket.gaierror, UnicodeError):
        raise UserError(f"--host {host}: there is no address of this name; 127.0.0.1 is this machine") from None
    except PermissionError:
        raise UserError(f"--port {port}: only root may serve at it; take one from 1024 on, such as 7860") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"--port {port} is in use; end what serves there, or take a free one: --port 0") from None
        reason = os.strerror(error.errno or 0)
        raise UserError(f"--host {host} is no address to serve at ({reason}); 127.0.0.1 is this machine") from None


def load_models(config: AppConfig) -> "list[Pretrained]":
    """The models, in their order.

    Raises:
        UserError: if one can't be loaded, or the GPU that is asked for isn't there.
    """
    import torch

    import engine

    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        raise UserError("--device cuda: PyTorch sees no GPU here; leave the flag out")
    device = config.device if config.device != "auto" else "cuda" if has_gpu else "cpu"
    if config.fp16 and device == "cpu":
        raise UserError("--fp16 needs a GPU; on a CPU use --bf16, or neither for fp32")
    dtype: Any = torch.float16 if config.fp16 else torch.bfloat16 if config.bf16 else torch.float32
    return [engine.load_pretrained(folder, device=device, dtype=dtype) for folder in config.folders]
