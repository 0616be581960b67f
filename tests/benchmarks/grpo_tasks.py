"""Four verifiable tasks for GRPO: one that is solved, one hopeless, one to learn, one for later."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TASKS = ("solved", "hopeless", "learnable", "later")
SYMBOLS = 16
PAD, EOS = 0, 1
_FIRST = 3 + len(TASKS)  # the symbols come after the words that name the tasks
VOCABULARY = _FIRST + SYMBOLS
LONGEST = 2


@dataclass(frozen=True)
class Answers:
    """The right symbol of each task for each of ``SYMBOLS`` questions.

    Nothing earns "hopeless" a reward, nor "later" before a part of the completions is generated, as
    where a verifier is mended, or a tool comes, in mid-run.

    Args:
        seed: of the tables.
    """

    seed: int

    def table(self) -> dict[str, list[int]]:
        """Return the symbols by task and question."""
        rng = random.Random(self.seed)
        first, second = (rng.sample(range(SYMBOLS), SYMBOLS) for _ in range(2))
        return {"solved": [*range(SYMBOLS)], "hopeless": [], "learnable": first, "later": second}


def tokenizer() -> Any:
    """Return a tokenizer of whole words."""
    words = ["<pad>", "<eos>", "<unk>", *TASKS, *(f"s{x}" for x in range(SYMBOLS))]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    kind: Any = PreTrainedTokenizerFast
    return kind(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def prompts(rows: int = 1024) -> Dataset:
    """Return as many questions of each task."""
    listed = []
    for row in range(rows):
        task, x = TASKS[row % len(TASKS)], row // len(TASKS) % SYMBOLS
        listed.append({"prompt": f"{task} s{x}", "task": task, "question": x})
    return Dataset.from_list(listed)


class Verifier:
    """Rewards right answers with 1, and others with 0.

    Args:
        answers: that are right.
        later: completions before which no answer to "later" is.
    """

    def __init__(self, answers: Answers, *, later: int) -> None:
        self.__name__ = "right"
        self._table, self._later, self._seen = answers.table(), later, 0

    def __call__(
        self, completion_ids: Sequence[Any], task: Any, question: Any, **_: Any
    ) -> list[float]:
        """Return the rewards of completions."""
        told = []
        for ids, name, x in zip(completion_ids, task, question, strict=True):
            open_ = name != "hopeless" and (name != "later" or self._seen >= self._later)
            told.append(float(open_ and ids[0] == _FIRST + self._table[name][x]))
        self._seen += len(completion_ids)
        return told


def _ids(task: str, x: int) -> list[int]:
    return [3 + TASKS.index(task), _FIRST + x]


def start(answers: Answers, *, steps: int = 1000) -> Any:
    """Return a model that was fine-tuned on answers that are mostly guessed.

    It is right nearly always in "solved", and in about one of eight cases elsewhere.

    Args:
        answers: of the tasks.
        steps: of fine-tuning.
    """
    torch.manual_seed(answers.seed)
    shape: dict[str, Any] = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
    heads: dict[str, Any] = {"num_attention_heads": 2, "max_position_embeddings": 16}
    config = LlamaConfig(
        vocab_size=VOCABULARY, pad_token_id=PAD, eos_token_id=EOS, **shape, **heads
    )
    model: Any = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rng, table = random.Random(answers.seed), answers.table()
    for _ in range(steps):
        rows = []
        for _ in range(64):
            task, x = rng.choice(TASKS), rng.randrange(SYMBOLS)
            told = rng.randrange(SYMBOLS)
            if task == "solved" or (task != "hopeless" and rng.random() < 0.2):
                told = table[task][x]
            rows.append([*_ids(task, x), _FIRST + told, EOS])
        ids = torch.tensor(rows)
        logits = model(input_ids=ids).logits[:, 1:-1]
        F.cross_entropy(logits.mT, ids[:, 2:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@torch.no_grad()
def pass_rates(model: Any, answers: Answers) -> dict[str, float]:
    """Return the exact probability of a right answer, a mean over questions, by task."""
    rates = dict.fromkeys(TASKS, 0.0)
    for task, table in answers.table().items():
        if not table:
            continue
        ids = torch.tensor([_ids(task, x) for x in range(SYMBOLS)])
        wanted = torch.tensor([_FIRST + s for s in table])
        chances: Tensor = model(input_ids=ids).logits[:, -1].softmax(-1)
        rates[task] = float(chances.gather(1, wanted[:, None]).mean())
    return rates
