"""Corpora in every layout, and one clear line for everything that can be wrong with them."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from hybrid_retrieval.corpus.readers import read_corpus, read_passage_list
from hybrid_retrieval.errors import CorpusError
from hybrid_retrieval.types import Passage

GOOD = '{"_id": "a", "title": "T", "text": "one", "year": 1999}\n'


def written(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def complaint(path: Path) -> str:
    with pytest.raises(CorpusError) as caught:
        list(read_corpus(path))
    message = str(caught.value)
    assert "\n" not in message
    return message


EXPECTED = [Passage("a", "one", "T", {"year": 1999}), Passage("2", "zwei é\u2028x", "", {})]


@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize(
    "name", ["c.jsonl", "c.ndjson", "c.jsonl.gz", "C.JSONL.GZ", "beir/corpus.jsonl", "beir/corpus.jsonl.gz"]
)
def test_json_lines(tmp_path: Path, name: str, bom: str) -> None:
    content = (bom + GOOD + "\n" + '{"id": 2, "contents": "zwei é\u2028x", "title": null}').encode()
    path = written(tmp_path, name, gzip.compress(content) if name.lower().endswith("gz") else content)
    assert list(read_corpus(path.parent if name.startswith("beir") else path)) == EXPECTED
    assert list(read_corpus(str(path))) == EXPECTED


def test_the_first_id_key_wins_and_the_rest_is_metadata(tmp_path: Path) -> None:
    line = {"id": "x", "_id": "y", "text": "t", "metadata": {"lang": "en", "url": "u"}, "lang": "de"}
    (passage,) = read_corpus(written(tmp_path, "c.jsonl", json.dumps(line)))
    assert passage == Passage("y", "t", "", {"lang": "de", "url": "u", "id": "x"})


def test_csv_with_quotes_and_lines_inside(tmp_path: Path) -> None:
    content = 'docid,text,title,url\r\na,"one, ""two""\nthree",T,u\r\n\r\nb,second,,v\r\n'
    assert list(read_corpus(written(tmp_path, "c.csv", content))) == [
        Passage("a", 'one, "two"\nthree', "T", {"url": "u"}),
        Passage("b", "second", "", {"url": "v"}),
    ]


def test_csv_with_a_field_beyond_the_default_limit(tmp_path: Path) -> None:
    (passage,) = read_corpus(written(tmp_path, "c.csv", "id,text\na," + "x" * 300_000))
    assert len(passage.text) == 300_000


def test_tsv_with_and_without_header(tmp_path: Path) -> None:
    assert list(read_corpus(written(tmp_path, "h.tsv", 'id\ttext\ttitle\na\t"one\tT\n'))) == [Passage("a", '"one', "T")]
    bare = [Passage("0", "first"), Passage("1", "second, third")]
    assert list(read_corpus(written(tmp_path, "trec/collection.tsv", "0\tfirst\n1\tsecond, third\n"))) == bare
    assert list(read_corpus(tmp_path / "trec")) == bare
    titled = written(tmp_path, "colbert/collection.tsv", "0\tfirst\tT\n1\tsecond\t\n")
    assert list(read_corpus(titled)) == [Passage("0", "first", "T"), Passage("1", "second")]


@pytest.mark.parametrize("name", ["h.tsv", "h.csv"])
def test_the_names_in_a_header_may_be_in_capitals(tmp_path: Path, name: str) -> None:
    content = "ID \tText\tTitle\tURL\na\tone\tT\tu\n".replace("\t", "\t" if name == "h.tsv" else ",")
    assert list(read_corpus(written(tmp_path, name, content))) == [Passage("a", "one", "T", {"URL": "u"})]


def test_a_name_in_capitals_beside_the_known_one_is_metadata(tmp_path: Path) -> None:
    expected = [Passage("a", "one", "t", {"Title": "T"})]
    assert list(read_corpus(written(tmp_path, "h.csv", "id,text,Title,title\na,one,T,t\n"))) == expected


def test_the_names_of_parquets_columns_may_be_in_capitals(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"ID": ["a"], "Text": ["one"], "Title": ["T"], "Url": ["u"]})
    pyarrow.parquet.write_table(table, tmp_path / "p.parquet")
    assert list(read_corpus(tmp_path / "p.parquet")) == [Passage("a", "one", "T", {"Url": "u"})]


def test_a_first_line_that_begins_with_the_name_of_ids_is_no_passage(tmp_path: Path) -> None:
    for content, missing in (("id\tbody\na\tone\n", "text"), ("pid\tpassage\na\tone\n", "id")):
        with pytest.raises(CorpusError, match=rf"h\.tsv:1: no {missing} column in the header"):
            list(read_corpus(written(tmp_path, "h.tsv", content)))


def test_gzip_data_under_another_name_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_bytes(gzip.compress(b'{"_id": "a", "text": "one"}'))
    with pytest.raises(CorpusError, match=r"c\.jsonl:1: expected text, got gzip data: let the file's name end in \.gz"):
        list(read_corpus(tmp_path / "c.jsonl"))


def test_a_folder_of_texts_says_which_records_it_leaves_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "README.md").write_text("How to read the data.")
    assert len(list(read_corpus(tmp_path))) == 1 and not caplog.records
    for name in ("b.jsonl", "sub/a.tsv.gz", ".hidden.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert [passage.passage_id for passage in read_corpus(tmp_path)] == ["README.md"]
    (record,) = caplog.records
    assert "only its 1 .txt and .md files" in record.message and "2 files of records are left out" in record.message
    assert "first b.jsonl" in record.message


def test_a_folder_of_texts_in_the_order_of_names(tmp_path: Path) -> None:
    for name, text in {
        "b.txt": "bee",
        "a.md": "# ay",
        "sub/c.txt": "\ufeffsea",
        ".git/x.txt": "no",
        "d.py": "no",
    }.items():
        written(tmp_path, name, text)
    (tmp_path / "sub" / "z.txt.gz").write_bytes(gzip.compress(b"zed"))
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    expected = [Passage("a.md", "# ay"), Passage("b.txt", "bee"), Passage("sub/c.txt", "sea")]
    expected.append(Passage("sub/z.txt.gz", "zed"))
    assert list(read_corpus(tmp_path)) == expected
    assert list(read_corpus(tmp_path / "b.txt")) == [Passage("b.txt", "bee")]


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"_id": ["a", "b"], "text": ["one", "two"], "year": [1999, None]})
    parquet.write_table(table, tmp_path / "c.parquet")
    assert list(read_corpus(tmp_path / "c.parquet")) == [
        Passage("a", "one", "", {"year": 1999}),
        Passage("b", "two", "", {"year": None}),
    ]
    parquet.write_table(pyarrow.table({"_id": ["a", "b"], "text": ["one", ""]}), tmp_path / "e.parquet")
    assert "e.parquet: row 2: passage 'b': 'text' is empty" in complaint(tmp_path / "e.parquet")
    parquet.write_table(pyarrow.table({"_id": ["a"], "text": ["x"], "s": [float("nan")]}), tmp_path / "n.parquet")
    assert "n.parquet: row 1: 's': metadata must be JSON values" in complaint(tmp_path / "n.parquet")
    latin = pyarrow.array([b"caf\xe9"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"_id": ["a"], "text": latin}), tmp_path / "l.parquet")
    assert "l.parquet: after row 0: a value cannot be read ('utf-8' codec" in complaint(tmp_path / "l.parquet")
    far = pyarrow.array([2**62], pyarrow.timestamp("us"))
    parquet.write_table(pyarrow.table({"_id": ["a"], "text": ["x"], "t": far}), tmp_path / "t.parquet")
    assert "t.parquet: after row 0: a value cannot be read" in complaint(tmp_path / "t.parquet")
    parquet.write_table(pyarrow.table({"_id": ["a"], "body": ["x"]}), tmp_path / "k.parquet")
    assert "no text column in the header" in complaint(tmp_path / "k.parquet")
    assert "not a readable Parquet file" in complaint(written(tmp_path, "x.parquet", "PAR1 no"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"_id": "b", "text": "x"', "malformed JSON at column"),
        ("not json", "malformed JSON at column 1: Expecting value"),
        ('["a", "b"]', "expected a JSON object {...} on each line, got an array"),
        ("null", "got null"),
        ("17", "got a number"),
        ('{"text": "x"}', "no id: expected one of the keys _id, id, passage_id, docid; found 'text'"),
        ('{"_id": "b"}', "no text: expected one of the keys text, contents; found '_id'"),
        ('{"_id": "b", "text": ""}', "passage 'b': 'text' is empty"),
        ('{"_id": "b", "text": " \\n\\u3000"}', "passage 'b': 'text' is empty"),
        ('{"_id": "b", "text": null}', "passage 'b': expected 'text' to be a string, got null"),
        ('{"_id": "b", "text": ["x"]}', "passage 'b': expected 'text' to be a string, got an array"),
        (
            '{"_id": "b", "text": "x", "title": 7}',
            "passage 'b': expected 'title' to be a string, got a number",
        ),
        ('{"_id": "", "text": "x"}', "'_id' is empty"),
        ('{"_id": null, "text": "x"}', "expected '_id' to be a string or an integer, got null"),
        ('{"_id": true, "text": "x"}', "expected '_id' to be a string or an integer, got a boolean"),
        ('{"_id": 1.5, "text": "x"}', "expected '_id' to be a string or an integer, got a number"),
        ('{"_id": "%s", "text": "x"}' % ("é" * 257), "'_id' has 514 bytes; at most 512"),
        ('{"_id": "b", "text": "x", "n": NaN}', "NaN is no JSON value"),
        ('{"_id": "b", "text": "x", "n": [-1e999]}', "the number -1e999 is too large"),
        ('{"_id": "b", "text": "x\\u0000y"}', "a NUL character"),
        ('{"_id": "b", "text": "x", "m": {"k": ["\\u0000"]}}', "a NUL character"),
        ('{"_id": "b", "text": "x \\ud83d"}', "half a surrogate pair (\\ud83d)"),
        ('{"_id": "b", "text": "x", "m": "\\uDC00"}', "half a surrogate pair (\\udc00)"),
        ('{"_id": "b", "text": "x", "m": %s}' % ("[" * 150 + "]" * 150), "nested deeper than 100 levels"),
        (
            '{"_id": "b", "text": "x", "m": %s}' % ("[" * 100_000 + "]" * 100_000),
            "nested deeper than 100 levels",
        ),
        ("[" * 100_000, "nested deeper than 100 levels"),
        ('{"_id": %s, "text": "x"}' % ("9" * 5000), "malformed JSON: Exceeds the limit"),
    ],
    ids=lambda value: value[:40],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = written(tmp_path, "c.jsonl", GOOD + line + "\n")
    found = complaint(path)
    assert found.startswith(f"{path}:2: ") and message in found


def test_a_surrogate_pair_and_many_brackets_are_fine(tmp_path: Path) -> None:
    line = '{"_id": "b", "text": "\\ud83d\\ude00 %s"}' % ("[{" * 200)
    (passage,) = read_corpus(written(tmp_path, "c.jsonl", line))
    assert passage.text == "\U0001f600 " + "[{" * 200


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("über".encode("latin-1"), "expected UTF-8, got byte 0xfc at byte 1 of the line; convert it"),
        (b"a\0b", "a NUL byte at byte 2 of the line"),
        ("\ufeffx".encode("utf-16-le"), "got UTF-16"),
    ],
)
@pytest.mark.parametrize("name", ["c.jsonl", "c.csv", "c.tsv", "c.txt"])
def test_wrong_bytes_are_named(tmp_path: Path, name: str, raw: bytes, message: str) -> None:
    head = {"c.jsonl": GOOD, "c.csv": "id,text\n", "c.tsv": "id\ttext\n", "c.txt": "fine\n"}[name].encode()
    path = written(tmp_path, name, head + raw + b"\n")
    found = complaint(path)
    assert found.startswith(f"{path}:2: ") and message in found


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.csv", "text,title\nx,y\n", ":1: no id column in the header: expected one of the keys _id, id"),
        ("c.csv", "id;text\n1;x\n", ":1: no id column in the header"),
        ("c.csv", "id,body\n1,x\n", ":1: no text column in the header"),
        ("c.csv", "id,text,text\n1,x,y\n", ":1: the column 'text' is there twice"),
        ("c.csv", 'id,text\na,"x\ny"\nb\n', ":4: expected 2 fields (id, text), got 1"),
        ("c.csv", 'id,text\na,"x\n', ":2: malformed CSV"),
        ("c.csv", "id,text\na,x\nb,\n", ":3: passage 'b': 'text' is empty"),
        ("c.csv", "id,text\n,x\n", ":2: 'id' is empty"),
        ("c.tsv", "a\tb\tc\n", ":1: no id column in the header"),
        ("c.tsv", "1\tx\n2\ty\tz\n", ":2: expected 2 fields, id<TAB>text, got 3"),
        ("c.tsv", "1\tx\n2\t\n", ":2: passage '2': 'text' is empty"),
        ("c.txt", " \n", ": 'text' is empty"),
        ("c.csv", "id,text\n", ": holds no passages"),
        ("c.jsonl", "", ": holds no passages"),
        ("c.jsonl", "\n \n", ": holds no passages"),
        ("c.jsonl.gz", "plain", ":1: cannot be read on"),
        ("c.docx", "x", ": unknown kind of corpus '.docx'; expected .jsonl"),
        ("corpus", "x", ": unknown kind of corpus ''"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = written(tmp_path, name, content)
    assert complaint(path).startswith(f"{path}{message}")


def test_a_cut_off_gzip_file_is_named(tmp_path: Path) -> None:
    digits = "".join(map(str, range(5000)))
    whole = gzip.compress((GOOD + f'{{"_id": "b", "text": "{digits}"}}\n').encode())
    path = written(tmp_path, "c.jsonl.gz", whole[: len(whole) // 2])
    assert "is the file complete?" in complaint(path)


def test_a_duplicate_id_names_both_places(tmp_path: Path) -> None:
    path = written(tmp_path, "c.jsonl", GOOD + '{"_id": "b", "text": "x"}\n' + GOOD)
    assert complaint(path) == f"{path}:3: the id 'a' came before, at {path}:1; ids must be unique"


def test_a_path_that_is_no_corpus_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no such file or folder"):
        read_corpus(tmp_path / "missing.jsonl")
    with pytest.raises(CorpusError, match=r"not a corpus: expected corpus\.jsonl"):
        read_corpus(tmp_path)


def test_reading_streams(tmp_path: Path) -> None:
    line = '{"_id": "%d", "text": "%s"}\n'
    path = written(tmp_path, "c.jsonl", "".join(line % (i, "x" * 100_000) for i in range(200)))
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_corpus(path)) == 200
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000, "20 MB of text must not be in memory at once"


def test_a_plain_list_of_passages(tmp_path: Path) -> None:
    path = written(tmp_path, "p.txt", 'first one\n\n{"text": "two", "title": "T"}\n{"id": "z", "text": "three"}\n')
    assert list(read_passage_list(path)) == [
        Passage("0", "first one"),
        Passage("1", "two", "T"),
        Passage("z", "three"),
    ]
    with pytest.raises(CorpusError, match=r"p\.txt:1: malformed JSON"):
        list(read_passage_list(written(tmp_path, "p.txt", "{oops\n")))
    with pytest.raises(CorpusError, match="holds no passages"):
        list(read_passage_list(written(tmp_path, "p.txt", "\n")))


def test_reading_json_needs_no_pyarrow() -> None:
    code = "import sys; sys.modules['pyarrow'] = None; import hybrid_retrieval.corpus.readers as r; "
    code += "print(r.__name__)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "hybrid_retrieval.corpus.readers"


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hybrid_retrieval.errors import OptionalDependencyError

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(OptionalDependencyError, match=r"hybrid-retrieval\[parquet\]"):
        read_corpus(written(tmp_path, "c.parquet", "PAR1"))


def test_a_text_may_be_empty_beside_a_title(tmp_path: Path) -> None:
    """As in BEIR's collections (TREC-COVID)."""
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"_id": "a", "title": "Remdesivir", "text": ""}\n{"_id": "b", "title": "", "text": "x"}\n')
    first, _ = read_corpus(path)
    assert (first.title, first.text, first.content(), first.content(False)) == ("Remdesivir", "", "Remdesivir", "")
