"""Conversations as a model reads them: its tokenizer's chat template, or prompt, line end, response.

A template is a program of the checkpoint's; transformers runs it in jinja's sandbox.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from das_jax.data.layouts import DocumentTokens
from das_jax.data.records import ASSISTANT, Conversation, Message
from das_jax.data.roles import GIVEN, OPENS
from das_jax.data.tokenization import Encoder, encoder
from das_jax.errors import UserError

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""Opens what the assistant says, in a template that marks it."""

DATE = "26 Jul 2024"
"""Today, for templates that say it, so that the same rows are the same tokens tomorrow: Llama 3's default."""


class Rendered(NamedTuple):
    """A conversation as text.

    Attributes:
        text: All of it.
        learned: The ranges of characters that the assistant says, each with the end of its turn.
        where: Its place, for error messages.
    """

    text: str
    learned: list[tuple[int, int]]
    where: str

    @property
    def given(self) -> str:
        """What stands before the first response."""
        return self.text[: self.learned[0][0]]


@dataclass(frozen=True)
class Chat:
    """How a tokenizer writes conversations.

    Attributes:
        encoder: The tokenizer, which recognises all special tokens.
        template: The chat template; None for a tokenizer that has none.
        names: What a template calls the special tokens: `bos_token`, ...
        place: Whose tokenizer it is, for people.
    """

    encoder: Encoder
    template: str | None
    names: Mapping[str, str]
    place: str

    @property
    def special(self) -> DocumentTokens:
        assert isinstance(self.encoder.special, DocumentTokens)
        return self.encoder.special

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all it does."""
        said = [self.encoder.fingerprint, self.template, dict(self.names)]
        return sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    @property
    def _marks(self) -> bool:
        """Whether the template itself says what the assistant says."""
        return self.template is not None and GENERATION.search(self.template) is not None

    def render(self, conversation: Conversation) -> Rendered:
        """A conversation as text.

        With a template it is what the template makes of it. Where that does not mark what the assistant says
        (`{% generation %}`), this is what a longer beginning of the conversation has more than a shorter one,
        up to the last character that is no white space: line ends between turns are nobody's. Without a
        template it is the prompt, a line end and the response.

        Raises:
            UserError: The template fails or refuses it, or it does not tell what the assistant says; or there
                is no template, and there is more than a prompt and a response.
        """
        where, messages = conversation
        if self.template is None:
            return self._plain(where, messages)
        text, learned = self._rendered(where, messages)
        if not self._marks:
            turns = [i for i, each in enumerate(messages) if each["role"] == ASSISTANT]
            learned = [self._turn(where, text, messages, i) for i in turns]
        if not any(start < stop for start, stop in learned):
            raise UserError(
                f"{where}: the chat template of {self.place} shows nothing that the assistant says; mend or "
                "drop the record."
            )
        return Rendered(text, learned, where)

    def question(self, conversation: Conversation) -> str:
        """A conversation as text, up to where the assistant answers.

        Raises:
            UserError: There is no template, or it fails or refuses the conversation.
        """
        where, messages = conversation
        if self.template is None:
            raise UserError(
                f"{where}: the tokenizer of {self.place} has no chat template, so nothing says how an "
                "assistant is asked; let the model go on with the text instead."
            )
        return self._rendered(where, messages, prompt=True)[0]

    def encode(self, several: Sequence[Rendered]) -> list[np.ndarray]:
        """The tokens of conversations, int32: the first one opens, what nobody learns is given."""
        texts = [each.text for each in several]
        encodings = self.encoder.backend.encode_batch(texts, add_special_tokens=False)
        found = []
        for each, encoding in zip(several, encodings, strict=True):
            ids = np.array(encoding.ids, np.int32)
            begin, end = np.array(encoding.offsets, np.int64).reshape(-1, 2).T
            learned = np.zeros(len(ids), bool)
            for start, stop in each.learned:
                learned |= (begin < stop) & (end > start)
            tokens = np.where(learned, ids, ids | GIVEN)
            if self.template is None:
                opening = [] if self.special.first is None else [self.special.first | GIVEN]
                tokens = np.concatenate([opening, tokens, [self.special.separator]])
            tokens = tokens.astype(np.int32)
            tokens[0] |= OPENS
            found.append(tokens)
        return found

    def _plain(self, where: str, messages: Sequence[Message]) -> Rendered:
        said = [(each["role"], each.get("content")) for each in messages]
        roles = [role for role, content in said if isinstance(content, str)]
        if len(said) != len(roles) or roles != ["user", ASSISTANT]:
            raise UserError(
                f"{where}: the tokenizer of {self.place} has no chat template, so it writes a prompt and a "
                "response and no other conversation; give a model with one, or rows with `prompt` and "
                "`response`."
            )
        given = f"{said[0][1]}\n"
        text = f"{given}{said[1][1]}"
        return Rendered(text, [(len(given), len(text))], where)

    def _turn(
        self, where: str, text: str, messages: Sequence[Message], turn: int
    ) -> tuple[int, int]:
        """The characters of the assistant's message of this number."""
        before, _ = self._rendered(where, messages[:turn], prompt=True)
        until, _ = (
            (text, []) if turn + 1 == len(messages) else self._rendered(where, messages[: turn + 1])
        )
        if not (text.startswith(until) and until.startswith(before)):
            raise UserError(
                f"{where}: the chat template of {self.place} writes the beginning of this conversation "
                f"otherwise when it goes on (message {turn + 1}), so that nothing tells what the assistant "
                "says: mark that with {% generation %} in the template, or give each response a row of its "
                "own, with the messages up to it."
            )
        return len(before), len(before) + len(until[len(before) :].rstrip())

    def _rendered(
        self, where: str, messages: Sequence[Message], prompt: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        render: Any = render_jinja_template
        try:
            (text,), found = render(
                [list(messages)],
                chat_template=self.template,
                return_assistant_tokens_mask=self._marks,
                add_generation_prompt=prompt,
                date_string=DATE,
                **self.names,
            )
        except Exception as error:  # A template is a program: it raises anything.
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise UserError(
                f"{where}: the chat template of {self.place} does not take this conversation ({reason}): "
                "mend or drop the record."
            ) from error
        return text, found[0] if found else []


def chat(tokenizer: PreTrainedTokenizerBase) -> Chat:
    """How a decoder's tokenizer writes conversations.

    Raises:
        UserError: As `encoder`; or it has several chat templates, and none that is called `default`.
    """
    template: Any = tokenizer.chat_template
    if isinstance(template, dict):
        if "default" not in template:
            raise UserError(
                f"The tokenizer of {tokenizer.name_or_path} has the chat templates "
                f"{', '.join(map(repr, template))}: call the one to be used 'default'."
            )
        template = template["default"]
    names = {
        name: each for name, each in tokenizer.special_tokens_map.items() if isinstance(each, str)
    }
    return Chat(encoder(tokenizer, "all", causal=True), template, names, tokenizer.name_or_path)
