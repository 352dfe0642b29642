"""How a chat becomes tokens, as the model's own template has it."""

from omni_thinker.models.chat.facts import ChatFacts
from omni_thinker.models.chat.format import ChatFormat, load_chat

__all__ = ["ChatFacts", "ChatFormat", "load_chat"]
