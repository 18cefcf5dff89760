"""One text that is being written: its tokens, the text of them so far, and the reason why it ended."""

from collections.abc import Sequence
from typing import Literal

from dl.data.text.contract import REPLACEMENT, Tokenizer
from dl.generation.sampling import Sampling

FinishReason = Literal["end", "stop", "length"]
_CONTEXT = 8  # tokens of the prompt that are decoded too, since a token can decide about a space before it


class Writing:
    """One sample of a request.

    Attributes:
      prompt: tokens of the prompt.
      source: tokens that an encoder reads; `None` for a model without an encoder.
      sampling: settings.
      sample: number of the sample of its request.
      end_id: end-of-text token. `None` means that there is none.
      tokens: chosen tokens, with the end-of-text token if there is one.
      log_probabilities: log-probability of each chosen token in nats.
      finish_reason: why the text ended: `end` (the end-of-text token), `stop` (a stop string) or `length`.
        `None` while it is being written.
      text: text of the tokens without the end-of-text token, up to a stop string.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        tokenizer: Tokenizer,
        *,
        end_id: int | None = None,
        sample: int = 0,
        source: Sequence[int] | None = None,
    ):
        self.prompt, self.source, self.sampling, self.sample = tuple(prompt), source, sampling, sample
        self.tokens: list[int] = []
        self.log_probabilities: list[float] = []
        self.finish_reason: FinishReason | None = None
        self.text = ""
        self._tokenizer, self.end_id = tokenizer, end_id
        self._all = list(prompt)
        # The text of the tokens from `_start` to `_shown` has been added to `text`.
        self._shown = len(self._all)
        self._start = max(0, self._shown - _CONTEXT)

    def take(self, token: int, log_probability: float) -> None:
        """Adds the next token."""
        self.tokens.append(token)
        self.log_probabilities.append(log_probability)
        if token == self.end_id:
            self._add(self._next_text(is_last=True))
            self.finish_reason = self.finish_reason or "end"
            return
        self._all.append(token)
        if len(self.tokens) == self.sampling.max_tokens:
            self.finish()
        else:
            self._add(self._next_text(is_last=False))

    def finish(self) -> None:
        """Ends the text, if it has not ended, because there cannot be more tokens."""
        if self.finish_reason is None:
            self._add(self._next_text(is_last=True))
            self.finish_reason = self.finish_reason or "length"

    @property
    def final_text(self) -> str:
        """The part of the text that no later token changes: not the beginning of a stop string."""
        if self.finish_reason is not None:
            return self.text
        for size in range(max(map(len, self.sampling.stop), default=1) - 1, 0, -1):
            if any(self.text.endswith(stop[:size]) for stop in self.sampling.stop if size < len(stop)):
                return self.text[:-size]
        return self.text

    @property
    def history(self) -> list[int]:
        """The tokens of the prompt and the chosen ones."""
        return self._all

    def _next_text(self, is_last: bool) -> str:
        """Returns the text of new tokens; nothing while they end with the first bytes of a character."""
        before = self._tokenizer.decode(self._all[self._start : self._shown])
        after = self._tokenizer.decode(self._all[self._start :])
        if not is_last and after.endswith(REPLACEMENT):
            return ""
        self._start, self._shown = self._shown, len(self._all)
        return after[len(before) :]

    def _add(self, piece: str) -> None:
        searched = max(0, len(self.text) - max(map(len, self.sampling.stop), default=0))
        self.text += piece
        places = [self.text.find(stop, searched) for stop in self.sampling.stop]
        if found := [place for place in places if place >= 0]:
            self.text = self.text[: min(found)]
            self.finish_reason = "stop"
