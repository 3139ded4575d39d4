"""The words of a prompt, and the tokenizer that comes with the package: without torch, so that they are known early."""

from __future__ import annotations

from functools import lru_cache

from tokenizers import Tokenizer

BUILTIN = "builtin"  # the name of the tokenizer that needs no download


def prompt(task: str, indicator: bool | None, before: str = "") -> str:
    """The text that the policy reads; `indicator` None gives the unconditional prompt, lerobot's own for π0.

    before: what the indicator stands in front of, where a text ends with more than the instruction (π0.5: "Action: ").
    """
    said = "" if indicator is None else f"Advantage: {'positive' if indicator else 'negative'}\n"
    if before:
        return task.removesuffix(before) + said + before
    return (task if task.endswith("\n") else f"{task}\n") + said


NUMBERS = range(-1, 256)  # that the numbers of a state become in a prompt


@lru_cache
def builtin_words(*, numbers: bool = False) -> Tokenizer:
    """A byte-level BPE made on the spot, so that the tiny sizes fetch nothing.

    It is trained on words of instructions only: common words are one token, everything else falls back to bytes. The
    words of the indicator are left out on purpose: a small model from scratch overlooks one token, and reads an
    indicator that is spelt out. numbers: each of NUMBERS is a token too, for prompts that hold the state.
    """
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

    words = (
        "put the moka pot on the stove\nput both moka pots on the stove\n "
        "push pick place open close turn and in it plate bowl cup mug front left right of to"
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([words] * 8, trainer)
    if numbers:
        tokenizer.add_tokens([AddedToken(f" {number}", normalized=False) for number in NUMBERS])
    return tokenizer
