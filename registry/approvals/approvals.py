"""The second person of a promotion: a policy in the registry, requests, approvals, and the check of a move that was made.

model/approvals/policy/000001.json            a policy: the newest with voices enough is in force
model/approvals/requests/TIER/000003-ID.json  a request, made when the tier had so many moves
….json → …/WHO.json                           the voices for either

Aliases say nothing of it, so servers and tools of earlier versions read them as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from registry.approvals.records import ApprovalPolicy, PromotionRequest, Voice
from registry.approvals.voices import Voices
from registry.errors import Conflict, FlexiError, InvalidInput, NeedsApproval, NotFound, StoreUnavailable, Untrusted
from registry.records import Alias, Target
from registry.stores.base import ObjectStore
from registry.writer import Writer

if TYPE_CHECKING:
    from registry.signing import SigningKey, TrustedKeys

PERSONS = 2  # that a promotion takes
POLICY = "policy"  # what is approved where it is no request


class PolicyWithVoices(NamedTuple):
    """A policy, who speaks for it, and how many it takes."""

    policy: ApprovalPolicy
    voices: Sequence[Voice]
    needed: int

    @property
    def in_force(self) -> bool:
        """Whether enough do."""
        return len(self.voices) >= self.needed


class OpenRequest(NamedTuple):
    """A request, and who speaks for it."""

    request: PromotionRequest
    voices: Sequence[Voice]


class Approvals:
    """Of one model. With trusted keys, as servers have them, only what those signed counts: policies as well as requests."""

    def __init__(
        self,
        store: ObjectStore,
        model: str,
        writer: Writer,
        trusted: TrustedKeys | None = None,
        required: Collection[str] = (),
    ) -> None:
        """`required`: tiers that need a second person whatever a policy says: no writer of the store can take that away."""
        self._store, self._model, self._writer = store, model, writer
        self._voices = Voices(store, writer, trusted)
        self._required = required
        self._seen: ApprovalPolicy | None = None  # in force: one that is gone or older afterwards was taken away

    def policies(self) -> Iterator[PolicyWithVoices]:
        """All of them, oldest first. The first takes one person; who changes one that guards a tier takes a second."""
        guarded = False
        for key in self._documents("policy/"):
            policy = ApprovalPolicy.read(key, self._store.get(key).data)
            voices = self._voices.of(key, policy.document(), signed=policy.signed)
            found = PolicyWithVoices(policy, voices, PERSONS if guarded else 1)
            guarded = bool(policy.tiers) if found.in_force else guarded
            yield found

    def policy(self) -> ApprovalPolicy | None:
        """The one in force, if any. Who has seen one keeps it where the store has no newer one."""
        for found in self.policies():
            if found.in_force and (self._seen is None or found.policy.number > self._seen.number):
                self._seen = found.policy
        return self._seen

    def set_policy(
        self, tiers: Sequence[str], known: Mapping[str, tuple[str, ...]], hours: float, reason: str, key: SigningKey | None
    ) -> PolicyWithVoices:
        """Propose a policy. Raises `Conflict` where somebody else does at the same time."""
        by, number = self._writer, len(self._documents("policy/")) + 1
        policy = ApprovalPolicy(
            number=number, tiers=tuple(tiers), signed=key is not None, hours=hours, known=dict(known), time=by.clock(),
            author=by.author, host=by.host, reason=reason,
        )  # fmt: skip
        place = self._key(f"policy/{number:06d}")
        self._store.create(place, policy.document())
        self._voices.add(place, policy.document(), reason, key)
        return next(found for found in self.policies() if found.policy.number == number)

    def approve_policy(self, reason: str, key: SigningKey | None) -> PolicyWithVoices:
        """Speak for the newest policy. Raises `NotFound` where there is none that waits, and `Conflict`."""
        newest = next((found for found in [*self.policies()][::-1] if not found.in_force), None)
        if newest is None:
            raise NotFound("no change of the policy waits for a second person", param="approve")
        number = newest.policy.number
        self._refuse_lost_voice(newest.policy.signed, key, POLICY)
        self._voices.add(self._key(f"policy/{number:06d}"), newest.policy.document(), reason, key)
        return next(found for found in self.policies() if found.policy.number == number)

    def guards(self, tier: str) -> bool:
        """Whether a promotion of this tier takes a second person."""
        policy = self.policy()
        return tier in self._required or bool(policy and tier in policy.tiers)

    def refuse_unapproved(self, tier: str, target: Target, moves: int) -> None:
        """Raise `NeedsApproval` unless the tier needs no second person, or has one for this target after so many moves."""
        if self.guards(tier) and not any(self._approved(request) for request in self._made(tier, moves, target.digest)):
            raise NeedsApproval("a second person must approve this promotion: make a request", param=f"tier {tier}")

    def request(self, tier: str, target: Target, moves: int, reason: str, key: SigningKey | None = None) -> PromotionRequest:
        """Ask for a second person, and speak for it oneself. An open one for the same is returned as it is.

        Where voices are signatures and there is no key, nobody has spoken yet. Raises `InvalidInput` for a key where they are
        names.
        """
        policy, by = self.policy(), self._writer
        signed = bool(policy and policy.signed)
        if key:
            self._refuse_lost_voice(signed, key, tier)
        for made in self._made(tier, moves, target.digest):
            if self._writer.clock() < made.until:
                return made
        made = PromotionRequest(
            model=self._model, tier=tier, target=target, moves=moves, time=by.clock(),
            until=by.clock() + timedelta(hours=policy.hours if policy else 72), author=by.author, host=by.host, reason=reason,
        )  # fmt: skip
        self._store.create(self._place(made), made.document())
        if key or not signed:
            self._voices.add(self._place(made), made.document(), reason, key)
        return made

    def approve(self, request: PromotionRequest, moves: int, reason: str, key: SigningKey | None = None) -> Sequence[Voice]:
        """Speak for a request of a tier that has so many moves now; everybody who does. `Conflict`: somebody does already.

        Raises `InvalidInput` for a stale one, and for a name where signatures count, or the other way round.
        """
        if self._stale(request, moves):
            gone = (
                "the tier was moved since" if moves != request.moves else f"it was good until {request.until:%Y-%m-%d %H:%M %Z}"
            )
            raise InvalidInput(f"{request.id} is stale, {gone}: make another one", param="request")
        policy = self.policy()
        self._refuse_lost_voice(bool(policy and policy.signed), key, request.id)
        try:
            self._voices.add(self._place(request), request.document(), reason, key)
        except Conflict:
            if not self._approved(request):  # else its promotion was cut off, and is made up for
                raise
        return self._speakers(request)

    def requests(self) -> Iterator[OpenRequest]:
        """All that were ever made, stale ones too; not those that are damaged."""
        for request in self._read(self._documents("requests/")):
            yield OpenRequest(request, self._speakers(request))

    def open_requests(self, moves: Callable[[str], int]) -> list[OpenRequest]:
        """Those that may still be approved; `moves`: how often a tier was moved. What is over is not read."""
        found = []
        for tier in self._store.folders(f"{self._model}/approvals/requests/"):
            now = moves(tier)
            made = self._read(self._documents(f"requests/{tier}/{now:06d}-"))
            found += [OpenRequest(one, self._speakers(one)) for one in made if not self._stale(one, now)]
        return found

    def find(self, request_id: str) -> PromotionRequest:
        """A request by its id. Raises `NotFound`."""
        for key in self._documents("requests/"):
            if key.endswith(f"-{request_id}.json"):
                return PromotionRequest.read(key, self._store.get(key).data)
        raise NotFound(f"there is no request {request_id} in {self._model}", param="request")

    def check(self, alias: Alias) -> None:
        """Raise `Untrusted` for a move of a guarded tier that no two persons stand for.

        A promotion needs its own request, made before it or for what it has done. A rollback, which one person makes, leads to
        what was approved for the tier before, or to what it had meant when the policy came.
        """
        if not self.guards(alias.tier):
            return
        policy, newest = self._seen, alias.history[-1]
        if policy and alias.digest in policy.known.get(alias.tier, ()):
            return
        when: Sequence[int | None] = (alias.moves - 1, alias.moves) if newest.action == "promote" else (None,)
        if not any(self._approved(request) for moves in when for request in self._made(alias.tier, moves, alias.digest)):
            message = (
                f"move {alias.moves}, a {newest.action} to version {alias.version} by {newest.author}, has no second person"
            )
            if policy is None or alias.tier not in policy.tiers:
                message += f", and no policy says what the tier meant before: python -m registry policy --tier {alias.tier}"
            raise Untrusted(message, param=f"tier {alias.tier}")

    def _refuse_lost_voice(self, signed: bool, key: SigningKey | None, what: str) -> None:
        """Raise `InvalidInput` for a name where signatures count, or a signature where names do: it would be lost silently."""
        if signed and key is None:
            raise InvalidInput(f"voices are signatures here: python -m registry approve {what} --key KEY.pem", param="key")
        if key is not None and not signed and not self._voices.trusting:
            message = "voices are names here, beside which a signature counts for nothing: leave the key out"
            raise InvalidInput(
                f"{message}, or make a policy of keys: python -m registry policy --tier … --key KEY.pem", param="key"
            )

    def _approved(self, request: PromotionRequest) -> bool:
        return len(self._speakers(request)) >= PERSONS

    def _speakers(self, request: PromotionRequest) -> Sequence[Voice]:
        policy = self.policy()
        return self._voices.of(self._place(request), request.document(), signed=bool(policy and policy.signed))

    def _stale(self, request: PromotionRequest, moves: int) -> bool:
        return moves != request.moves or self._writer.clock() >= request.until

    def _made(self, tier: str, moves: int | None, digest: str) -> Iterator[PromotionRequest]:
        """Requests to let a tier mean a digest, after so many moves or at any time. One that is damaged counts for nothing."""
        for request in self._read(self._documents(f"requests/{tier}/" + ("" if moves is None else f"{moves:06d}-"))):
            if (request.tier, request.target.digest) == (tier, digest):
                yield request

    def _read(self, keys: Sequence[str]) -> Iterator[PromotionRequest]:
        """Those that lie where they say they do; others, and those that are damaged, count for nothing."""
        for key in keys:
            try:
                request = PromotionRequest.read(key, self._store.get(key).data)
            except StoreUnavailable:
                raise
            except FlexiError:
                continue
            if request.model == self._model and self._place(request) == key:
                yield request

    def _documents(self, start: str) -> list[str]:
        """Keys of policies or requests, not of the voices beside them."""
        folder = f"{self._model}/approvals/"
        depth = folder.count("/") + {"policy": 1, "requests": 2}[start.split("/")[0]]
        return [key for key in self._store.list(folder + start) if key.count("/") == depth]

    def _place(self, request: PromotionRequest) -> str:
        return self._key(f"requests/{request.tier}/{request.moves:06d}-{request.id}")

    def _key(self, rest: str) -> str:
        return f"{self._model}/approvals/{rest}.json"
