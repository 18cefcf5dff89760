import json

import numpy as np
import pytest

from dl.data.text import token_files, token_writer
from dl.data.text.token_files import read_bare_files, read_tokens, verify_tokens
from dl.data.text.token_writer import write_tokens
from dl.data.text.tokenizer import ByteTokenizer, CharacterTokenizer
from dl.data.text.tokenizers_subword import train_bpe
from dl.errors import UserError

TOKENIZER = ByteTokenizer(("end",))
TEXTS = ["first text", "", "the second, a longer one", "ö"]
EXPECTED = [token for text in TEXTS for token in (*text.encode(), 256)]


@pytest.fixture
def folder(tmp_path):
    write_tokens(tmp_path / "tokens", TOKENIZER, TEXTS, shard_tokens=7)
    return tmp_path / "tokens"


def test_the_documents_come_back_from_any_position(folder):
    tokens = read_tokens(folder, TOKENIZER)
    assert len(tokens) == len(EXPECTED)
    assert [path.stat().st_size // 2 for path in sorted(folder.glob("*.bin"))] == [7] * 5 + [5]
    np.testing.assert_array_equal(tokens[:], EXPECTED)
    positions = np.random.default_rng(0).integers(0, len(EXPECTED), (5, 9))
    np.testing.assert_array_equal(tokens[positions], np.array(EXPECTED)[positions])
    np.testing.assert_array_equal(tokens[5:15], EXPECTED[5:15])
    np.testing.assert_array_equal(tokens.part(5, 15)[:], EXPECTED[5:15])
    np.testing.assert_array_equal(tokens.part(5, 30)[np.array([[1, 20]])], np.array(EXPECTED)[[[6, 25]]])
    assert tokens.tokenizer == TOKENIZER
    assert tokens.num_bytes == sum(len(text.encode()) for text in TEXTS)
    assert tokens.dtype == np.uint16
    verify_tokens(folder)


def test_the_checksum_is_that_of_the_content(folder, tmp_path):
    again = write_tokens(tmp_path / "again", TOKENIZER, iter(TEXTS), shard_tokens=7)
    other = write_tokens(tmp_path / "other", TOKENIZER, [*TEXTS[:3], "ä"], shard_tokens=7)
    assert again.checksum == read_tokens(folder).checksum != other.checksum
    assert len({again.checksum, again.part(0, 5).checksum, again.part(1, 5).checksum}) == 3


def test_a_large_vocabulary_takes_four_bytes_a_token(tmp_path):
    characters = CharacterTokenizer("".join(map(chr, range(0x10000, 0x10000 + 2**16 + 1))))
    tokens = write_tokens(tmp_path / "tokens", characters, [characters.characters[::-1]])
    assert tokens.dtype == np.uint32
    np.testing.assert_array_equal(tokens[:3], [2**16, 2**16 - 1, 2**16 - 2])


def test_a_file_in_blocks_has_the_tokens_of_its_whole_text(tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    text = "It was\n\nthe  best of times, (it was)\r\nthe worst\tof times... 12 34\n" * 20
    (tmp_path / "text.txt").write_bytes(text.encode())
    tokenizer = train_bpe([text], 300, ("end",))
    monkeypatch.setattr(token_writer, "_BLOCK", 50)
    tokens = write_tokens(tmp_path / "tokens", tokenizer, [tmp_path / "text.txt"])
    np.testing.assert_array_equal(tokens[:], [*tokenizer.encode(text), tokenizer.end_id])


def test_a_folder_is_there_only_when_it_is_complete(tmp_path):
    def documents():
        yield "a" * 100
        assert not (tmp_path / "tokens").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tokens(tmp_path / "tokens", TOKENIZER, documents(), shard_tokens=10)
    assert list(tmp_path.iterdir()) == []


def latin(folder):
    path = folder / "latin.txt"
    path.write_bytes("ö".encode("latin-1"))
    return path


def cut(folder):
    path = folder / "tokens-00002.bin"
    path.write_bytes(path.read_bytes()[:-1])


def flip(folder):
    path = folder / "tokens-00002.bin"
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


def edit(folder, **changes):
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"tokens-00002.bin is damaged \(it has 13 bytes, expected 14\)"),
        (flip, "tokens-00002.bin is damaged .its content does not match its checksum"),
        (
            lambda folder: (folder / "tokens-00003.bin").unlink(),
            "tokens-00003.bin cannot be read",
        ),
        (lambda folder: edit(folder, shards=[]), "index.json is damaged"),
        (lambda folder: edit(folder, shards=[], sha256=None), "index.json is damaged"),
        (lambda folder: edit(folder, dtype="float32", sha256=None), "index.json is damaged"),
        (
            lambda folder: edit(folder, tokenizer="{}", sha256=None),
            "of a tokenizer is damaged",
        ),
        (lambda folder: (folder / "index.json").write_text("[]"), "index.json is damaged"),
    ],
)
def test_damage_is_one_clear_line(folder, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=message) as error:
        read_tokens(folder)
    assert "\n" not in str(error.value)


def test_a_large_set_is_checked_when_it_is_asked_for(folder, monkeypatch):
    monkeypatch.setattr(token_files, "MAX_VERIFIED_BYTES", 10)
    flip(folder)
    read_tokens(folder)
    with pytest.raises(UserError, match="does not match its checksum"):
        verify_tokens(folder)


def llm_c(tokens, magic, version, dtype):
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(tokens)
    return header.tobytes() + np.array(tokens, dtype).tobytes()


def test_files_of_other_projects_are_read(tmp_path):
    (tmp_path / "a.bin").write_bytes(np.array([5, 1, 50256], "<u2").tobytes())  # nanoGPT
    (tmp_path / "b.bin").write_bytes(llm_c([7, 8], 20240520, 1, "<u2"))
    tokens = read_tokens(tmp_path)
    np.testing.assert_array_equal(tokens[:], [5, 1, 50256, 7, 8])
    (tmp_path / "c.bin").write_bytes(llm_c([2**17], 20240801, 7, "<u4"))
    np.testing.assert_array_equal(read_tokens(tmp_path / "c.bin")[:], [2**17])
    with pytest.raises(UserError, match="2 and of 4 bytes"):
        read_tokens(tmp_path)
    (tmp_path / "b.bin").write_bytes(llm_c([7, 8], 20240520, 1, "<u2")[:-2])
    with pytest.raises(UserError, match="b.bin is damaged .it has 1,026 bytes, expected 1,028"):
        read_bare_files([tmp_path / "b.bin"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: write_tokens(folder, TOKENIZER, TEXTS), "exists already; remove it"),
        (
            lambda folder: write_tokens(folder / "new", ByteTokenizer(), ["", ""]),
            "have no text",
        ),
        (
            lambda folder: write_tokens(folder / "new", TOKENIZER, [folder / "no.txt"]),
            "no.txt cannot be read",
        ),
        (
            lambda folder: write_tokens(folder / "new", TOKENIZER, [folder / "tokens-00005.bin"]),
            None,
        ),
        (lambda folder: read_tokens(folder, ByteTokenizer()), "was written by another tokenizer"),
        (lambda folder: read_tokens(folder / "no"), "there are no token files at"),
    ],
)
def test_a_mistake_is_one_clear_line(folder, make, message):
    with pytest.raises(UserError, match=message) as error:
        make(folder)
    assert "\n" not in str(error.value)
