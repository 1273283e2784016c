"""Malformed bodies, made from a seed alone: damaged images, multipart and JSON."""

from __future__ import annotations

import base64
import io
import json
import random
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

KINDS = (
    *(
        "multipart/form-data; boundary=b",
        "application/json",
        "multipart/form-data",
        "text/plain",
        "",
        "application/json;x",
    ),
    *(
        'multipart/form-data; boundary="b"',
        "multipart/form-data; boundary=",
        "multipart/mixed; boundary=b",
        "multipart",
    ),
    *(
        "Multipart/Form-Data; charset=x; Boundary=b",
        "application/json; charset=utf-16",
        "application/x-www-form-urlencoded",
    ),
    "multipart/form-data; boundary*0=b; boundary*1=c",
)
PATHS = (
    *("/v1/reports", "/v1/chat/completions", "/v1/reports?format=stream", "/v1/reports?format=sr", "/v1/reports?x=1"),
    *(
        "/v1/reports?format=",
        "/v1/reports?format=json&format=text",
        "/v1/reports?" + "a=b&" * 40,
        "/v1/reports?format=%ff",
    ),
)
NAMES = (
    *("images", "preset", "num_beams", "seed", "top_p", "force", "polarity", "format", "model", "messages", "stream"),
    *("n", "stream_options", "max_tokens", "temperature", "early_stopping", "\x00", "images[]", "\u00e9", "image"),
    *(
        "repetition_penalty",
        "length_penalty",
        "no_repeat_ngram_size",
        "top_k",
        "min_new_tokens",
        "semantics",
        "do_sample",
    ),
)
VALUES: tuple[Any, ...] = (
    *("", "fast", "-1", "1e999", "nan", "9" * 400, None, True, [], {}, [[]], {"a": {}}, 1e308, -1, 10**30),
    *("http://127.0.0.1:1/", "data:image/png;base64,", "data:;base64,AAAA", ["x"], [None], "\ud800", 0, 1, 2, 1.0),
    *(
        "--3",
        "+1",
        "1_0",
        "\u0663",
        "1e-300",
        1e-300,
        1e300,
        "0x1",
        " 1",
        "1\x00",
        "true",
        "never",
        1 << 63,
        -(1 << 63),
    ),
    *(float("nan"), float("inf"), "auto", "shape", "json", "pdf", "stream", "a" * 2000, {"include_usage": 1}),
)


@cache
def images() -> tuple[bytes, ...]:
    """Small whole images: PNG, JPEG, TIFF, DICOM, other formats, and what is no image."""
    from tests.helpers.dicom_files import CHEST, radiograph, stored, write

    picture = Image.open(CHEST).convert("L").resize((48, 40))
    whole = []
    for mode in ("L", "RGB", "I;16", "1", "LA", "P"):
        form = "PNG" if mode in ("I;16", "LA", "P") else "TIFF"
        whole += [_saved(picture.convert(mode), "PNG"), _saved(picture.convert(mode), form)]
    whole += [_saved(picture, form, **options) for form, options in (("JPEG", {}), ("JPEG", {"progressive": True}),
              ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "jpeg"}), ("GIF", {}), ("BMP", {}),
              ("WEBP", {}), ("JPEG2000", {}))]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for syntax in ("implicit", "explicit", "deflated", "rle", "jpeg", "lossless", "jls", "j2k"):
            values = stored(8 if syntax == "jpeg" else 12, False)
            dataset = radiograph(values, 8 if syntax == "jpeg" else 12)
            whole.append(write(Path(folder) / "image", dataset, values, syntax).read_bytes())
    return (
        *whole,
        b"",
        b"PK\x03\x04" + bytes(40),
        b"%PDF-1.4\n",
        b"DICM" * 40,
        bytes(128) + b"DICM",
        b"II*\x00" + bytes(60),
    )


def _saved(picture: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def damaged(draw: random.Random) -> bytes:
    """An image that is cut off, has other bits, lacks or repeats a piece, or is followed by something."""
    data = bytearray(draw.choice(images()))
    for _ in range(draw.choice((0, 1, 1, 2, 8))):
        at = draw.randrange(len(data)) if data else 0
        kind = draw.randrange(5)
        if kind == 0:
            del data[at:]
        elif kind == 1 and data:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 2:
            del data[at : at + draw.randrange(64)]
        elif kind == 3:
            data[at:at] = data[at : at + draw.randrange(64)]
        else:
            data[at : at + 4] = draw.choice((b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff", draw.randbytes(4)))
    return bytes(data)


def malformed(seed: int, picture: bytes) -> tuple[str, dict[str, str], bytes]:
    """Path, headers and body of request number `seed`.

    Args:
        seed: makes the request.
        picture: a PNG file, of which the beginning is sent too.
    """
    draw = random.Random(seed)
    path, kind = draw.choice(PATHS[:3] * 8 + PATHS), draw.choice(KINDS[:2] * 30 + KINDS)
    only_images = draw.random() < 0.5  # what is wrong is then found where images are read
    if draw.random() < 0.02:
        kind = f"multipart/form-data; boundary={'b' * draw.choice((69, 70, 256, 257, 300))}"
    if "json" in kind:
        body = _json(draw, picture, path, only_images)
    elif kind.lower().startswith("multipart"):
        body = _multipart(draw, picture, only_images)
    else:
        body = draw.randbytes(draw.randrange(200))
    data = bytearray(body)
    for _ in range(0 if only_images else draw.choice((0, 0, 0, 1, 4))):
        if data:
            at = draw.randrange(len(data))
            data[at : at + draw.randrange(8)] = draw.randbytes(draw.randrange(8))
    accept = draw.choice(("*/*",) * 8 + ("text/event-stream", "application/pdf", "application/dicom", "x", ""))
    headers = {"accept": accept, "content-type": kind}
    if draw.random() < 0.03:
        headers["content-encoding"] = draw.choice(("gzip", "br", "identity", "IDENTITY", "x, y"))
    return path, headers, bytes(data)


def _url(draw: random.Random, picture: bytes) -> Any:
    """A data URL, or nearly."""
    data = picture[: draw.randrange(400)] if draw.random() < 0.2 else damaged(draw)
    text = base64.b64encode(data).decode()
    text = draw.choice((text, text, text, text.rstrip("="), text + "=", text.replace("+", "-"), f" {text}",
                        f"{text[:8]}\n{text[8:]}", text.replace("=", "%3D"), text + "\u00e9", text[:-1]))  # fmt: skip
    head = draw.choice(("data:image/png;base64,", "data:;base64,", "data:image/png;charset=x;name=y;base64,"))
    if draw.random() < 0.15:
        head = draw.choice(("data:image/png,", "DATA:image/png;BASE64,", "data:" + ";a=b" * 80 + ";base64,", "", "file:///",
                            "data:\ud800;base64,", "data:image/png;base64;base64,", "http://127.0.0.1:1/"))  # fmt: skip
    return head + text


def _json(draw: random.Random, picture: bytes, path: str, only_images: bool) -> bytes:
    if only_images:
        urls = ["data:;base64," + base64.b64encode(damaged(draw)).decode() for _ in range(draw.randrange(1, 3))]
        content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        chat = {"model": "r2gen", "messages": [{"role": "user", "content": content}]}
        return json.dumps({"max_new_tokens": 2, **(chat if "chat" in path else {"images": urls})}).encode()
    fields: dict[str, Any] = {draw.choice(NAMES): draw.choice(VALUES) for _ in range(draw.choice((0, 0, 1, 1, 2, 5)))}
    urls = [_url(draw, picture) for _ in range(draw.choice((1, 1, 2, 4)))]
    if "chat" in path and draw.random() < 0.8:
        parts: list[Any] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        if draw.random() < 0.3:
            parts.append(draw.choice(({"type": "text", "text": "x"}, {"type": 1}, None, [], {"image_url": {}}, "x",
                                      {"type": "image_url", "image_url": 1}, {"type": "image_url"})))  # fmt: skip
        message = {"role": draw.choice(("user", "user", "user", "system", None, 1)), "content": parts}
        fields |= {"model": draw.choice(("r2gen-demo", "r2gen", "gpt", None)), "messages": [message]}
        fields["max_tokens"] = draw.choice((1, 3, 3, None, 0, "3"))
    elif draw.random() < 0.8:
        fields |= {"images": urls, "max_new_tokens": draw.choice((1, 3, 3, None, 0, "3"))}
    text = json.dumps(fields, ensure_ascii=draw.random() < 0.9)
    if draw.random() < 0.2:
        text = draw.choice((
            text[: draw.randrange(len(text))], f"[{text}]", text + text, "[" * draw.choice((900, 2000, 100_000)),
            '{"a":' * draw.choice((300, 900, 100_000)), f'{{"images":1,{text[1:]}', f'{{"seed":{"9" * 5000}}}',
            "null", '""',
            f'{{"seed":1e{"9" * 400}}}', text.replace('"', "'"), f"\ufeff{text}",
            "[" + "1," * 3000 + "1]", '{"\\ud800":1}',
            '{"images":["data:;base64,AAAA"],"preset":"\\udfff\\u0000"}', "-" * 100, "NaN", '{"seed":-0}', "\x00" * 50,
        ))  # fmt: skip
    code = draw.choice(("utf-8",) * 12 + ("utf-16", "utf-32-be", "latin-1", "utf-7"))
    return text.encode(code, "replace")


def _multipart(draw: random.Random, picture: bytes, only_images: bool) -> bytes:
    if only_images:
        head = b"--b\r\nContent-Disposition: form-data; name="
        parts = [head + b'"images"; filename="a"\r\n\r\n' + damaged(draw) for _ in range(draw.randrange(1, 3))]
        return b"\r\n".join([head + b'"max_new_tokens"\r\n\r\n2', *parts, b"--b--\r\n"])
    parts = []
    for _ in range(draw.choice((0, 1, 1, 2, 3, 5, 70)) if draw.random() < 0.9 else 65):
        image = draw.random() < 0.5
        name = ("images" if draw.random() < 0.9 else draw.choice(NAMES)) if image else draw.choice(NAMES)
        file = draw.choice((
            '; filename="a"', '; filename="a.dcm"', "; filename*=x''a", '; filename="', "; filename=",
            '; filename="\x01\x7f\t"',
            '; filename="../../etc/passwd"', f'; filename="{"a" * 9000}"', '; filename="\u00e9\u202e"',
            '; filename="a\\"b"',
        )) if image else ""  # fmt: skip
        end = draw.choice(("\r\n\r\n",) * 6 + ("\n\n", "\r\n", ": x\r\n\r\n", "\r\nX: " + "a" * 9000 + "\r\n\r\n",
                           "\r\n folded\r\n\r\n", "\r\nContent-Transfer-Encoding: base64\r\n\r\n",
                           "\r\nno colon\r\n\r\n",
                           "\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c\r\n\r\nx\r\n--c--\r\n",
                           "\r\nContent-Disposition: form-data; name=\"x\"\r\n\r\n",
                           "\r\nX: y" * 200 + "\r\n\r\n"))  # fmt: skip
        value = damaged(draw) if image else str(draw.choice(VALUES)).encode("utf-8", "replace")
        if image and draw.random() < 0.1:
            value = picture[: draw.randrange(600)]
        disposition = draw.choice(("form-data", "attachment", "")) if draw.random() < 0.1 else "form-data"
        head = f'--b\r\nContent-Disposition: {disposition}; name="{name}"{file}{end}'
        parts.append(head.encode("utf-8", "replace") + value)
    if draw.random() < 0.5:
        parts.insert(0, b'--b\r\nContent-Disposition: form-data; name="max_new_tokens"\r\n\r\n2')
    start = draw.choice((b"",) * 8 + (b"\r\n", b"preamble\r\n", b"-", b"\x00"))
    end = draw.choice(
        (b"--b--\r\n",) * 6 + (b"--b", b"", b"--b--", b"--b--\r\nepilogue", b"--b-\r\n", b"--b--" + b"\r" * 500)
    )
    return start + b"\r\n".join([*parts, end])
