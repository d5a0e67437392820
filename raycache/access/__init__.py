"""Who may ask a worker what: tokens, what they allow, and how much at once.

Pure but for a clock. `Gate` is what a Flight server asks; `tokens` makes and checks signed tokens; `rules` says what an
action needs.
"""

from raycache.access.callers import CLUSTER, VERBS, Caller, Verb
from raycache.access.gate import Gate
from raycache.access.tokens import EVERY, SigningKeys, TokenClaims

__all__ = ["CLUSTER", "EVERY", "VERBS", "Caller", "Gate", "SigningKeys", "TokenClaims", "Verb"]
