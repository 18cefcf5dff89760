"""Published tokenizers give the tokens that transformers gives, and have its special tokens."""

import pytest

from dl.data.text.tokenizers_subword import published, train_bpe, train_wordpiece

transformers = pytest.importorskip("transformers")

TEXTS = [
    "The cat sees the dog.",
    "Every dog likes the old man!",
    "Ein Mädchen hört die Katze.",
    "naïve café",
] * 3
NAMES = {
    "pad_token": "padding",
    "unk_token": "unknown",
    "bos_token": "start",
    "eos_token": "end",
    "mask_token": "mask",
    "sep_token": "separator",
    "cls_token": "class",
}


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_a_folder_that_transformers_wrote(kind, tmp_path):
    import tokenizers

    if kind == "gpt2":
        made = tokenizers.Tokenizer.from_str(train_bpe(TEXTS, 300).tokenizer)
        special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    else:
        made = tokenizers.Tokenizer.from_str(train_wordpiece(TEXTS, 120, ("padding", "unknown")).tokenizer)
        special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "<odd>"}
        special |= {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    peer = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special)
    peer.save_pretrained(tmp_path)
    tokenizer = published(tmp_path)
    for text in ("The dog hears the naïve man!", "a  b\n\tc 日"):
        tokens = tokenizer.encode(text)
        assert tokens == peer(text, add_special_tokens=False)["input_ids"]
        if kind == "gpt2":
            assert tokenizer.decode(tokens) == peer.decode(tokens) == text
    expected = {role: getattr(peer, f"{name}_id") for name, role in NAMES.items() if getattr(peer, name)}
    assert dict(tokenizer.special_ids) == expected
    assert tokenizer.vocab_size == len(peer)
