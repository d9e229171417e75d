import errno
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from engine.data.downloads import checksums, fetching, resources
from engine.data.downloads import download as module
from engine.data.downloads.download import download
from engine.data.downloads.plan import plan, print_plan
from engine.data.downloads.resources import RESOURCES, Resource, choose
from engine.data.downloads.unpacking import unpack_zip
from engine.data.images.places import image_path
from engine.errors import UserError
from tests.conftest import small_tmpfs

BODY = random.Random(0).randbytes(300_000)
ETAG = '"one"'


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files`; the other attributes of the server say how badly."""

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, self.headers["Range"], self.headers["If-Range"]))
        if server.stalls:
            time.sleep(1)
            return
        if server.errors:
            return self.send_error(server.errors.pop(0))
        if self.path not in server.files:
            return self.send_error(404)
        body, start = server.files[self.path], 0
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        if wanted and server.ranges and self.headers["If-Range"] in (None, server.etag, server.weak_if_range):
            start = int(wanted[1])
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206)
            shift = server.range_shift
            self.send_header("Content-Range", f"bytes {start + shift}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Type", server.content_type)
        if server.etag:
            self.send_header("ETag", server.etag)
        if server.tells_length:
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        end = start + server.drops.pop(0) if server.drops else len(body)
        for at in range(start, min(end, len(body)), server.chunk):
            self.wfile.write(body[at : min(at + server.chunk, end)])
            time.sleep(server.pause)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """A server on this machine that knows /file; `url` and `requests` are for the test to use."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetching, "BACK_OFF", 0.001)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.files, server.requests, server.errors, server.drops = {"/file": BODY}, [], [], []
    server.etag, server.weak_if_range, server.content_type = ETAG, None, "application/zip"
    server.ranges, server.tells_length, server.stalls, server.range_shift = True, True, False, 0
    server.chunk, server.pause = 2**16, 0.0
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def sha256(body):
    return hashlib.sha256(body).hexdigest()


def resource(server, name="file", **changes):
    return Resource(name, f"{server.url}/{name}", f"folder/{name}", **changes)


def exact(server, **changes):
    return resource(server, size=len(BODY), sha256=sha256(BODY), **changes)


def fetch(root, *resources, **options):
    return download(resources, root, progress=False, **options)


def names(root):
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def ranges(server):
    return [request[1] for request in server.requests]


def write_part(root, body, etag=""):
    (root / "folder").mkdir()
    (root / "folder/file.part").write_bytes(body)
    if etag:
        (root / "folder/file.part.etag").write_text(etag)


# Fetching


@pytest.mark.parametrize("make", [exact, resource], ids=["size and checksum known", "nothing known"])
def test_a_file_is_fetched_once(server, tmp_path, make):
    summary = fetch(tmp_path, make(server))
    assert (tmp_path / "folder/file").read_bytes() == BODY
    assert names(tmp_path) == ["folder/file", "folder/file.sha256"]
    assert summary["files"] == {"file": {"state": "fetched"}}
    assert json.loads(json.dumps(summary))["fetched_bytes"] == len(BODY)
    assert fetch(tmp_path, make(server))["files"] == {"file": {"state": "present"}}
    assert len(server.requests) == 1
    if tool := shutil.which("sha256sum"):
        subprocess.run([tool, "-c", "--status", "file.sha256"], cwd=tmp_path / "folder", check=True)


@pytest.mark.parametrize("make", [exact, resource], ids=["size and checksum known", "nothing known"])
def test_dropped_connections_are_resumed(server, tmp_path, make):
    server.drops = [100_000, 50_000]
    fetch(tmp_path, make(server))
    assert (tmp_path / "folder/file").read_bytes() == BODY
    assert server.requests[1:] == [("/file", "bytes=100000-", ETAG), ("/file", "bytes=150000-", ETAG)]


def test_a_server_without_ranges_starts_anew(server, tmp_path):
    server.drops, server.ranges = [100_000], False
    fetch(tmp_path, resource(server))
    assert (tmp_path / "folder/file").read_bytes() == BODY


@pytest.mark.parametrize("ignores_if_range", [False, True])
def test_two_versions_are_never_mixed(server, tmp_path, ignores_if_range):
    write_part(tmp_path, b"old" * 1000, etag='"old"')
    server.weak_if_range = '"old"' if ignores_if_range else None
    fetch(tmp_path, resource(server))
    assert (tmp_path / "folder/file").read_bytes() == BODY


def test_an_unmarked_part_is_resumed_only_where_a_checksum_will_tell(server, tmp_path):
    write_part(tmp_path, BODY[:1000])
    fetch(tmp_path, exact(server))
    assert ranges(server) == ["bytes=1000-"]
    shutil.rmtree(tmp_path / "folder")
    write_part(tmp_path, BODY[:1000])
    fetch(tmp_path, resource(server))
    assert ranges(server)[1:] == [None]


def test_an_answer_from_another_place_is_not_appended(server, tmp_path):
    write_part(tmp_path, BODY[:1000], ETAG)
    server.range_shift = 1
    fetch(tmp_path, resource(server))
    assert (tmp_path / "folder/file").read_bytes() == BODY
    assert ranges(server) == ["bytes=1000-", None]


def test_a_part_that_was_complete_only_gets_its_name(server, tmp_path):
    write_part(tmp_path, BODY, ETAG)
    fetch(tmp_path, resource(server))  # The server says 416.
    assert names(tmp_path) == ["folder/file", "folder/file.sha256"]
    assert ranges(server) == [f"bytes={len(BODY)}-"]
    shutil.rmtree(tmp_path / "folder")
    write_part(tmp_path, BODY)
    fetch(tmp_path, exact(server))
    assert len(server.requests) == 1


@pytest.mark.parametrize("etag", [ETAG, ""])
def test_a_part_that_is_too_long_starts_anew(server, tmp_path, etag):
    write_part(tmp_path, BODY + b"more", etag)
    fetch(tmp_path, exact(server) if not etag else resource(server))
    assert (tmp_path / "folder/file").read_bytes() == BODY


def test_a_busy_server_is_asked_again_but_not_for_ever(server, tmp_path):
    server.errors = [503, 429, 500]
    fetch(tmp_path, resource(server))
    server.errors = [503] * 100
    with pytest.raises(UserError, match=r"503 Service Unavailable \(4 attempts\)"):
        fetch(tmp_path / "other", resource(server))
    assert len(server.errors) == 100 - fetching.ATTEMPTS


def test_a_server_that_always_breaks_off_is_given_up_and_the_part_kept(server, tmp_path):
    server.drops, server.ranges = [1000] * 100, False
    with pytest.raises(UserError, match=r"broke off after 1,000 of 300,000 bytes \(4 attempts\)"):
        fetch(tmp_path, resource(server))
    assert (tmp_path / "folder/file.part").stat().st_size == 1000


@pytest.mark.parametrize("code", [403, 404])
def test_a_refused_file_is_told_and_the_others_are_fetched(server, tmp_path, code):
    server.errors = [code]
    server.files["/other"] = b"here"
    with pytest.raises(UserError) as caught:
        fetch(tmp_path, resource(server), resource(server, "other"))
    message = str(caught.value)
    assert "\n" not in message
    assert f"{server.url}/file can't be fetched: the server answered {code}" in message
    assert f"fetch it by hand to {tmp_path}/folder/file, then run the same command again" in message
    assert (tmp_path / "folder/other").read_bytes() == b"here"
    assert len(server.requests) == 2


def test_all_missing_files_are_named(server, tmp_path):
    with pytest.raises(UserError, match=r"/x can't .* \(not fetched either: y, z\)$"):
        fetch(tmp_path, *(resource(server, name) for name in "xyz"))


def test_a_mirror_steps_in(server, tmp_path):
    fetch(tmp_path, Resource("x", f"{server.url}/gone", "folder/x", mirrors=(f"{server.url}/file",)))
    assert (tmp_path / "folder/x").read_bytes() == BODY


def test_an_unknown_host_is_told_at_once(server, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(fetching, "BACK_OFF", 60.0)
    with pytest.raises(UserError, match=r"Name or service not known; fetch it by hand"):
        fetch(tmp_path, resource(server))


def test_a_silent_server_and_a_closed_port(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "TIMEOUT", 0.05)
    server.stalls = True
    with pytest.raises(UserError, match=r"no answer for 0.05 s \(4 attempts\)"):
        fetch(tmp_path, resource(server))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/x"
        with pytest.raises(UserError, match=rf"{url} can't be fetched: .*Connection refused"):
            fetch(tmp_path, Resource("x", url, "x"))


def test_a_web_page_is_not_a_file(server, tmp_path):
    server.content_type = "text/html; charset=utf-8"
    with pytest.raises(UserError, match="sent a web page"):
        fetch(tmp_path, resource(server))
    assert not (tmp_path / "folder/file").exists()


def test_another_size_than_published_is_told_before_a_byte_is_fetched(server, tmp_path):
    with pytest.raises(UserError, match=r"300,000 bytes are there, 299,999 were published"):
        fetch(tmp_path, resource(server, size=len(BODY) - 1))
    assert not (tmp_path / "folder/file.part").stat().st_size


def test_a_wrong_checksum_is_put_aside_and_fetched_anew(server, tmp_path):
    wrong = resource(server, size=len(BODY), sha256="0" * 64)
    with pytest.raises(
        UserError, match=rf"{server.url}/file has the sha256 {sha256(BODY)}, 0+ was published"
    ) as caught:
        fetch(tmp_path, wrong)
    assert str(tmp_path / "folder/file.bad") in str(caught.value)
    assert names(tmp_path) == ["folder/file.bad"]
    fetch(tmp_path, exact(server))
    assert ranges(server) == [None, None]


def test_a_file_put_there_by_hand_is_verified_once(server, tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    target = tmp_path / "folder/file"
    target.write_bytes(BODY)
    fetch(tmp_path, exact(server))
    with monkeypatch.context() as patch:
        patch.setattr(checksums, "_digest", None)
        fetch(tmp_path, exact(server))
    target.write_bytes(BODY[::-1])
    os.utime(target, (0, 0))  # as cp -p and wget do
    with pytest.raises(UserError, match=rf"{target} has the sha256 {sha256(BODY[::-1])}, {sha256(BODY)} was"):
        fetch(tmp_path, exact(server))
    assert target.read_bytes() == BODY[::-1]
    target.write_bytes(BODY[:1000])
    with pytest.raises(UserError, match=r"1,000 bytes, 300,000 were published; rename it to file.part to go on"):
        fetch(tmp_path, exact(server))
    assert not server.requests
    target.rename(tmp_path / "folder/file.part")
    fetch(tmp_path, exact(server))
    assert ranges(server) == ["bytes=1000-"]


def test_what_is_to_be_had_by_hand_is_left_alone(server, tmp_path):
    assert fetch(tmp_path, resource(server, by_hand=True))["files"] == {"file": {"state": "by hand"}}
    assert not server.requests


RUN = """
import sys
from pathlib import Path
from engine.data.downloads.resources import Resource
from engine.data.downloads.download import download
url, root, *unpack = sys.argv[1:]
print("begin", flush=True)
download([Resource("file", url, "folder/file", folder=unpack[0] if unpack else None)], Path(root), progress=False)
"""


def start(*arguments):
    program = [sys.executable, "-c", RUN, *map(str, arguments)]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout.readline() == b"begin\n"
    return process


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_a_killed_download_goes_on(server, tmp_path, number):
    server.chunk, server.pause = 10_000, 0.02
    process = start(f"{server.url}/file", tmp_path)
    part = tmp_path / "folder/file.part"
    wait_for(lambda: part.exists() and part.stat().st_size >= 50_000)
    with pytest.raises(UserError, match=rf"{part} is in use by another process"):
        fetch(tmp_path, resource(server))
    process.send_signal(number)
    process.communicate()
    have = part.stat().st_size
    assert have < len(BODY)
    assert plan(tmp_path, [exact(server)])[0].state == "partial"
    server.pause = 0
    fetch(tmp_path, resource(server))
    assert (tmp_path / "folder/file").read_bytes() == BODY
    assert server.requests[1:] == [("/file", f"bytes={have}-", ETAG)]


# Space


def test_too_little_space_is_told_before_anything_is_fetched(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "free_bytes", lambda path: 500_000)
    fetch(tmp_path, exact(server))
    (tmp_path / "folder/file").unlink()
    with pytest.raises(UserError, match=r"has 0.00 GB free, 0.00 GB are needed; choose fewer files with --only"):
        fetch(tmp_path, exact(server, folder="images"))
    monkeypatch.setattr(fetching, "free_bytes", lambda path: 200_000)
    with pytest.raises(UserError, match="free some"):  # The size is only known when the server answers.
        fetch(tmp_path, resource(server))
    assert ranges(server) == [None, None]


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 256 KiB."""
    with small_tmpfs(tmp_path / "disk", "256k"):
        yield tmp_path / "disk"


def test_a_full_disk_is_one_line_and_resumable(server, small_disk):
    server.tells_length = False
    with pytest.raises(UserError, match=r"file.part: the disk is full; what is there is kept: free some space and run"):
        fetch(small_disk, resource(server))
    have = (small_disk / "folder/file.part").stat().st_size
    assert 0 < have < len(BODY)
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    fetch(small_disk, resource(server))
    assert (small_disk / "folder/file").read_bytes() == BODY
    assert ranges(server) == [None, f"bytes={have}-"]


def test_a_disk_that_fills_up_without_a_small_disk_to_try(server, tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=r"the disk is full"):
        fetch(tmp_path, resource(server))
    assert names(tmp_path) == ["folder/file.part", "folder/file.part.etag"]


def test_a_short_write_loses_nothing(tmp_path):
    class Reluctant(io.BytesIO):
        def write(self, data):
            return super().write(data[:7])

    file = Reluctant()
    fetching._append(file, BODY[:1000], tmp_path)
    assert file.getvalue() == BODY[:1000]


def test_a_full_disk_while_unpacking(small_disk, tmp_path):
    path = write_zip(tmp_path / "x.zip", {f"top/{n}.jpg": BODY[:100_000] for n in range(4)})
    with pytest.raises(UserError, match="the disk is full"):
        unpack_zip(path, small_disk)
    assert names(small_disk) == ["0.jpg", "1.jpg"]


# The dry run


def test_the_dry_run_fetches_and_writes_nothing(server, tmp_path, capsys):
    resources = [
        exact(server, folder="images"),
        resource(server, "other", about="about 1 MB", mirrors=("http://mirror/other",)),
        resource(server, "drive", by_hand=True),
    ]
    print_plan(plan(tmp_path / "data", resources), tmp_path / "data")
    told = capsys.readouterr().out
    assert re.search(r"file +300,000 bytes +absent", told)
    assert re.search(r"other +about 1 MB +absent", told)
    assert re.search(r"drive .* by hand", told)
    assert f"{server.url}/file\n" in told
    assert f"{server.url}/other\n    or http://mirror/other\n" in told
    assert f"sha256 {sha256(BODY)}\n" in told
    assert f"to {tmp_path}/data/folder/file, unpacked into {tmp_path}/data/images\n" in told
    assert "sha256 none published\n" in told
    assert "in 1 files, and 2 files without a published exact size" in told
    assert not server.requests
    assert not list(tmp_path.iterdir())


def test_the_dry_run_tells_what_is_there(server, tmp_path, capsys):
    write_part(tmp_path, BODY[:75_000])
    (tmp_path / "folder/other").write_bytes(b"x")
    (tmp_path / "folder/short").write_bytes(b"x")
    resources = [exact(server), resource(server, "other"), resource(server, "short", size=2)]
    print_plan(plan(tmp_path, resources), tmp_path)
    told = capsys.readouterr().out
    assert "partial, 25.0%" in told
    assert re.search("other .* present\n", told)
    assert re.search("short .* wrong size\n", told)


def test_the_table_is_the_original_s_data():
    assert len({r.name for r in RESOURCES}) == len({r.target for r in RESOURCES}) == len(RESOURCES) == 17
    for r in RESOURCES:
        assert re.match(r"https?://", r.url)
        assert r.sha256 is None or re.fullmatch("[0-9a-f]{64}", r.sha256)
        assert (r.folder is None) == (not r.target.endswith(".zip"))
        assert r.folder is None or (r.size and r.sha256)
    for img_id in ("COCO_train2014_0", "COCO_val2014_0", "COCO_test2015_0", "1"):
        assert image_path(img_id).parent.as_posix() in {r.folder for r in RESOURCES}
    print_plan(plan(Path("nowhere"), RESOURCES), Path("nowhere"))


def test_files_are_chosen_by_name():
    assert [r.name for r in choose(" all_ans,val2014,all_ans ")] == ["all_ans", "val2014"]
    assert choose("") == list(RESOURCES)
    with pytest.raises(UserError, match="there is no val2015; the names are train2014, val2014"):
        choose("val2015")


# Unpacking


def write_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in members.items():
            archive.writestr(name, body)
    return path


def pictures(count, top, first=0):
    return {f"{top}/{n}.jpg": BODY[n * 1000 : n * 1000 + 900] for n in range(first, first + count)}


def images(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def wanted(members):
    return {name.rpartition("/")[2]: body for name, body in members.items()}


def test_both_parts_go_into_one_folder(server, tmp_path):
    first, second = pictures(5, "VG_100K"), pictures(7, "VG_100K_2", first=5)
    parts = []
    for name, members in (("images", first), ("images2", second)):
        body = write_zip(tmp_path / name, {f"{name}/": b"", f"{name}/.DS_Store": name.encode(), **members}).read_bytes()
        server.files[f"/{name}"] = body
        known = {"size": len(body), "sha256": sha256(body)}
        parts.append(Resource(name, f"{server.url}/{name}", f"vg/{name}.zip", **known, folder="vg/all"))
    root = tmp_path / "data"
    assert fetch(root, *parts, unpack=False)["files"]["images"] == {"state": "fetched"}
    assert not (root / "vg/all").exists()
    assert fetch(root, *parts)["files"] == {"images": {"state": "unpacked"}, "images2": {"state": "unpacked"}}
    assert images(root / "vg/all") == wanted(first | second)
    assert (root / "vg/images.zip").exists()
    fetch(root, *parts, remove_zip=True)
    assert fetch(root, *parts)["files"] == {"images": {"state": "unpacked"}, "images2": {"state": "unpacked"}}
    assert names(root / "vg") == sorted(
        ["all/.images.zip.unpacked", "all/.images2.zip.unpacked", *(f"all/{n}.jpg" for n in range(12))]
    )
    assert len(server.requests) == 2
    shutil.rmtree(root / "vg/all")
    assert [row.state for row in plan(root, parts)] == ["absent", "absent"]


def test_images_that_the_user_unpacked_need_no_zip(server, tmp_path, monkeypatch):
    monkeypatch.setitem(resources.IMAGES, "images", 3)
    (tmp_path / "images").mkdir()
    for number in range(3):
        states = [row.state for row in plan(tmp_path, [exact(server, folder="images")])]
        assert states == ["absent"]
        (tmp_path / f"images/{number}.jpg").write_bytes(b"x")
    assert fetch(tmp_path, exact(server, folder="images"))["files"] == {"file": {"state": "unpacked"}}
    assert not server.requests


def test_unpacking_goes_on_and_mends_what_a_crash_left(tmp_path):
    members = pictures(6, "top")
    path, folder = write_zip(tmp_path / "x.zip", members), tmp_path / "images"
    unpack_zip(path, folder)
    (folder / ".x.zip.unpacked").unlink()
    (folder / "1.jpg").unlink()
    (folder / "2.jpg").write_bytes(b"")
    kept = (folder / "3.jpg").stat().st_ino
    assert unpack_zip(path, folder) == 6
    assert images(folder) == wanted(members)
    assert (folder / "3.jpg").stat().st_ino == kept


@pytest.mark.parametrize("there", [b"other content", bytes(900)], ids=["other size", "same size"])
def test_another_image_of_the_same_name_is_kept(tmp_path, there):
    path, folder = write_zip(tmp_path / "x.zip", pictures(3, "top")), tmp_path / "images"
    folder.mkdir()
    (folder / "1.jpg").write_bytes(there)
    with pytest.raises(UserError, match=r"1.jpg \(\d+ bytes\) isn't the image of that name in .*x.zip"):
        unpack_zip(path, folder)
    assert (folder / "1.jpg").read_bytes() == there


def test_two_members_of_one_name(tmp_path):
    folder = tmp_path / "images"
    assert unpack_zip(write_zip(tmp_path / "same.zip", {"a/1.jpg": b"x", "b/1.jpg": b"x"}), folder) == 1
    with pytest.raises(UserError, match=r"'a/1.jpg' and 'b/1.jpg' differ"):
        unpack_zip(write_zip(tmp_path / "x.zip", {"a/1.jpg": b"x", "b/1.jpg": b"y"}), tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["../evil.jpg", "top/../../evil.jpg", "/evil.jpg", "..\\evil.jpg", "/", "top/../"])
def test_a_member_that_leaves_the_folder_is_refused(tmp_path, name):
    path = write_zip(tmp_path / "x.zip", {"top/1.jpg": b"x", name: b"evil"})
    with pytest.raises(UserError, match=r"x.zip: the member .* leaves the folder or isn't a plain file"):
        unpack_zip(path, tmp_path / "images")
    assert names(tmp_path) == ["x.zip"]


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_a_member_that_is_no_plain_file_is_refused(tmp_path, kind):
    info = zipfile.ZipInfo("top/1.jpg")
    info.external_attr = (kind | 0o777) << 16
    path = write_zip(tmp_path / "x.zip", {info: b"/etc/passwd"})
    with pytest.raises(UserError, match=r"'top/1.jpg' leaves the folder or isn't a plain file"):
        unpack_zip(path, tmp_path / "images")


def test_a_damaged_member_is_named(tmp_path):
    path = write_zip(tmp_path / "x.zip", pictures(3, "top"))
    body = bytearray(path.read_bytes())
    body[body.index(BODY[1000:1100]) + 50] ^= 1
    path.write_bytes(body)
    with pytest.raises(UserError, match=r"x.zip: the member 'top/1.jpg' is damaged \(Bad CRC-32"):
        unpack_zip(path, tmp_path / "images")
    assert names(tmp_path / "images") == ["0.jpg"]


@pytest.mark.parametrize("keep", [0, 1000, -10])
def test_a_truncated_zip_is_told(tmp_path, keep):
    path = write_zip(tmp_path / "x.zip", pictures(3, "top"))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"x.zip is no complete zip"):
        unpack_zip(path, tmp_path / "images")


def test_garbage_in_a_zip_is_always_a_user_error(tmp_path):
    path = write_zip(tmp_path / "x.zip", pictures(3, "top"))
    good, draw, whole = path.read_bytes(), random.Random(0), 0
    for number in range(300):
        body = bytearray(good)
        for _ in range(3):
            body[draw.randrange(len(body))] = draw.randrange(256)
        path.write_bytes(body)
        with suppress(UserError):
            unpack_zip(path, tmp_path / f"{number}")
            whole += 1
    assert 0 < whole < 300


def test_a_killed_unpacking_leaves_only_whole_images(server, tmp_path):
    members = {f"top/{n}.jpg": BODY for n in range(200)}
    (tmp_path / "folder").mkdir()
    path = write_zip(tmp_path / "folder/file", members)
    process = start(f"{server.url}/file", tmp_path, "images")
    folder = tmp_path / "images"
    wait_for(lambda: folder.exists() and len(images(folder)) > 10)
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(UserError, match=r"folder/file is in use by another process"):
        unpack_zip(path, folder)
    process.kill()
    process.communicate()
    assert len(images(folder)) < 200
    assert set(images(folder).values()) == {BODY}
    assert unpack_zip(path, folder) == 200
    assert images(folder) == wanted(members)
    assert names(folder) == sorted([".file.unpacked", *wanted(members)])
