"""Make the training text of the tiny checkpoint from two Debian packages.

Reads the data files of `r-cran-janeaustenr` (Jane Austen's six novels, an R lazy-load database) and of
`sword-text-web` (the World English Bible, a SWORD zText module) and writes two plain text files, one for training
and one held out. A document is a chapter and ends in `<|endoftext|>`; an empty line separates its paragraphs. Both
texts are in the public domain. Standard library only; knows nothing of tokens or models.
"""

import argparse
import html
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

SEPARATOR = "<|endoftext|>"
# The books of the Bible that are mostly prose narrative, by OSIS name.
NARRATIVE = {"Gen", "Exod", "Josh", "Judg", "Ruth", "1Sam", "2Sam", "1Kgs", "2Kgs", "Neh", "Esth", "Jonah", "Dan"}
NARRATIVE |= {"Tob", "Jdt", "1Macc", "2Macc", "Matt", "Mark", "Luke", "John", "Acts"}
STRAIGHT = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "—": "--", "_": None, "\u00a0": " "})
R_STRSXP, R_CHARSXP = 16, 9


def r_character_vector(data: bytes) -> list[str]:
    """The strings of one character vector in R's XDR serialization, version 3."""
    encoding_length = struct.unpack_from(">i", data, 14)[0]
    flags, count = struct.unpack_from(">ii", data, 18 + encoding_length)
    if flags & 0xFF != R_STRSXP:
        raise ValueError(f"R object: got type {flags & 0xFF}, expected a character vector ({R_STRSXP})")
    offset, strings = 26 + encoding_length, []
    for _ in range(count):
        flags, length = struct.unpack_from(">ii", data, offset)
        if flags & 0xFF != R_CHARSXP:
            raise ValueError(f"R vector: got element type {flags & 0xFF}, expected a string ({R_CHARSXP})")
        strings.append(data[offset + 8 : offset + 8 + length].decode("utf-8"))
        offset += 8 + length
    return strings


def novels(database: Path) -> Iterator[list[str]]:
    """The lines of each novel: the database is zlib streams, each behind its 4-byte length."""
    rest = database.read_bytes()
    while rest:
        stream = zlib.decompressobj()
        yield r_character_vector(stream.decompress(rest[4:]))
        rest = stream.unused_data


def novel_chapters(lines: list[str]) -> Iterator[str]:
    """Chapters of a novel with unwrapped paragraphs; title pages and editorial notes are dropped."""
    text = "\n".join(lines)
    text = re.split(r"\n *(?:FINIS|Finis|THE END|NOTE ON THE TEXT|Transcriber)\b", text)[0]
    text = re.sub(r"\n *VOLUME [IVX]+ *\n", "\n", text)
    for chapter in re.split(r"\n *(?:CHAPTER|Chapter) [IVXLC\d]+\.? *\n", text)[1:]:
        yield clean(chapter)


def bible_books(module: Path) -> Iterator[str]:
    """The OSIS text of each book, one zlib block a book: <ot|nt>.bzs indexes <ot|nt>.bzz."""
    for testament in ("ot", "nt"):
        blocks = (module / f"{testament}.bzz").read_bytes()
        for offset, length, _ in struct.iter_unpack("<III", (module / f"{testament}.bzs").read_bytes()):
            yield zlib.decompress(blocks[offset : offset + length]).decode("utf-8")


def bible_chapters(osis: str) -> Iterator[str]:
    """Chapters of the narrative books, without headings, footnotes, verse marks or Strong's numbers."""
    osis = re.sub(r"<(note|title)\b[^>]*(?<!/)>.*?</\1>", " ", osis, flags=re.DOTALL)
    chapters = re.split(r'<chapter\b[^>]*osisID="(\w+)\.\d+"[^>]*sID=[^>]*>', osis)
    for book, chapter in zip(chapters[1::2], chapters[2::2], strict=True):
        if book in NARRATIVE:
            chapter = re.sub(r'<(?:div|lg) (?!type="x-milestone")[^>]*sID=[^>]*>', "\n\n", chapter)
            chapter = re.sub(r"<l\b[^>]*>", " ", chapter)
            yield clean(html.unescape(re.sub(r"<[^>]*>", "", chapter)))


def clean(chapter: str) -> str:
    """One line a paragraph, straight quotes, single spaces; headings and [editorial remarks] are dropped."""
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", chapter.translate(STRAIGHT)))
    return "\n\n".join(part for part in paragraphs if re.search("[a-z]", part) and part[0] != "[")


def split(documents: list[str], heldout_bytes: int) -> tuple[list[str], list[str]]:
    """Evenly spaced chapters of moderate length are held out, about `heldout_bytes` of them."""
    moderate = [document for document in documents if 1500 <= len(document) <= 9000]
    average = sum(map(len, moderate)) / len(moderate)
    stride = max(1, int(len(moderate) * average / heldout_bytes))
    heldout = set(moderate[stride // 2 :: stride])
    return [d for d in documents if d not in heldout], [d for d in documents if d in heldout]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--austen", type=Path, required=True, help="janeaustenr/data/Rdata.rdb of r-cran-janeaustenr")
    parser.add_argument("--bible", type=Path, help="folder with ot.bzz and nt.bzz of sword-text-web")
    parser.add_argument("--heldout-bytes", type=int, default=20_000, help="held out of each source, about")
    parser.add_argument("--train", type=Path, required=True, help="file to write")
    parser.add_argument("--heldout", type=Path, required=True, help="file to write")
    options = parser.parse_args()
    sources = [[c for lines in novels(options.austen) for c in novel_chapters(lines) if c]]
    if options.bible:
        sources.append([c for osis in bible_books(options.bible) for c in bible_chapters(osis) if c])
    train, heldout = [], []
    for documents in sources:
        kept, held = split(documents, options.heldout_bytes)
        train, heldout = train + kept, heldout + held
    for path, documents in ((options.train, train), (options.heldout, heldout)):
        path.write_text("".join(document + SEPARATOR for document in documents), encoding="utf-8")
        print(f"{path}: {len(documents)} documents, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
