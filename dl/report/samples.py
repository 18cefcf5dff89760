"""The section of the texts that a model wrote during training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dl.report.record import number, text
from dl.report.task import Example, TaskSection

MAX_SAMPLES = 12  # for each prompt
MAX_PROMPTS = 4


def samples_section(lines: Sequence[Mapping[str, Any]]) -> TaskSection | None:
    """Returns the section of the lines of samples.jsonl; `None` if there are no samples.

    Args:
      lines: for each sample, `step`, the number of updates before it; `prompt`; and `text`, which the model
        wrote after the prompt. Other lines are left out.
    """
    by_prompt: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        if isinstance(line.get("prompt"), str) and isinstance(line.get("text"), str):
            by_prompt.setdefault(line["prompt"], []).append(line)
    if not by_prompt:
        return None
    groups = []
    for prompt, of_prompt in list(by_prompt.items())[:MAX_PROMPTS]:
        # Most changes in the beginning, so the first samples and the last one are shown.
        chosen = np.unique(
            np.geomspace(1, len(of_prompt), min(len(of_prompt), MAX_SAMPLES)).round().astype(int) - 1
        )
        shown = [
            Example((), [("", [(text(sample["text"]), 0)])], f"after step {number(sample.get('step')):,.0f}")
            for sample in (of_prompt[place] for place in chosen)
        ]
        groups.append((f"After the prompt {text(prompt)!r}" if prompt else "Without a prompt", shown))
    size = sum(map(len, by_prompt.values()))
    return TaskSection("Samples", f"{size:,} texts that the model wrote during training", (), examples=groups)
