"""Names and numbers of a network, as they stand in source texts."""

from collections.abc import Iterable


def c_string(text: str) -> str:
    r"""A C string of UTF-8: bytes that are no plain ASCII as octal escapes, which end after three digits."""
    escaped = (
        chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\?' else f"\\{byte:03o}"
        for byte in text.encode()
    )
    return '"' + "".join(escaped) + '"'


def kotlin_string(text: str) -> str:
    r"""A string of Kotlin: a dollar sign begins a template there; \u takes units of UTF-16."""
    return '"' + "".join(map(_kotlin_unit, _utf16(text))) + '"'


def _kotlin_unit(unit: int) -> str:
    return chr(unit) if 32 <= unit < 127 and chr(unit) not in '"\\$' else f"\\u{unit:04x}"


def _utf16(text: str) -> Iterable[int]:
    raw = text.encode("utf-16-le", "surrogatepass")
    return (raw[at] | raw[at + 1] << 8 for at in range(0, len(raw), 2))


def swift_string(text: str) -> str:
    r"""A string of Swift: \( begins an interpolation there, so a backslash is escaped, too."""
    escaped = (one if 32 <= ord(one) < 127 and one not in '"\\' else f"\\u{{{ord(one):x}}}" for one in text)
    return '"' + "".join(escaped) + '"'


def c_float(value: float) -> str:
    """Also Kotlin's; nine digits give back every float32."""
    text = f"{value:.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


def swift_float(value: float) -> str:
    text = f"{value:.9g}"
    return text if "." in text or "e" in text else f"{text}.0"


def comment(text: str) -> str:
    """Within /* */ or behind //: one line of ASCII that ends neither. Kotlin's and Swift's nest, so nothing begins one."""
    plain = "".join(one if one.isprintable() else " " for one in text)
    plain = plain.replace("\\", "/").replace("*/", "* /").replace("/*", "/ *")
    return plain.encode("ascii", "replace").decode()


def lines(entries: Iterable[str]) -> str:
    """One line each, four spaces in, with a comma."""
    return "".join(f"    {entry},\n" for entry in entries)
