"""Who may see what: keys and the rights they carry.  No I/O, no clock, no randomness in this file.

The rights are those of v3.32.1 as tests/data/recorded/lists.json has them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeAlias

from bridge.event import Entity

ALL: Final[Literal["all"]] = "all"

_NAMES = {
    "APPLICATION": "ALL DELETE DEVICES_READ DEVICES_READ_KEYS DEVICES_WRITE DEVICES_WRITE_KEYS INFO LINK"
    " SETTINGS_API_KEYS SETTINGS_BASIC SETTINGS_COLLABORATORS SETTINGS_PACKAGES"
    " TRAFFIC_DOWN_WRITE TRAFFIC_READ TRAFFIC_UP_WRITE",
    "CLIENT": "ALL DELETE INFO SETTINGS_BASIC SETTINGS_COLLABORATORS",
    "GATEWAY": "ALL DELETE INFO LINK LOCATION_READ READ_SECRETS SETTINGS_API_KEYS SETTINGS_BASIC"
    " SETTINGS_COLLABORATORS STATUS_READ TRAFFIC_DOWN_WRITE TRAFFIC_READ WRITE_SECRETS",
    "ORGANIZATION": "ADD_AS_COLLABORATOR ALL APPLICATIONS_CREATE APPLICATIONS_LIST CLIENTS_CREATE"
    " CLIENTS_LIST DELETE GATEWAYS_CREATE GATEWAYS_LIST INFO SETTINGS_API_KEYS SETTINGS_BASIC"
    " SETTINGS_MEMBERS",
    "USER": "ALL APPLICATIONS_CREATE APPLICATIONS_LIST AUTHORIZED_CLIENTS CLIENTS_CREATE CLIENTS_LIST DELETE"
    " GATEWAYS_CREATE GATEWAYS_LIST INFO NOTIFICATIONS_READ ORGANIZATIONS_CREATE ORGANIZATIONS_LIST"
    " SETTINGS_API_KEYS SETTINGS_BASIC",
}
OF_KIND: Mapping[str, frozenset[str]] = {
    kind.lower(): frozenset(f"RIGHT_{kind}_{name}" for name in names.split())
    for kind, names in _NAMES.items()
}
"""All rights there are on an application, a client, a gateway, an organization or a user itself."""

OF_USER = frozenset().union(*OF_KIND.values())
"""What a user may do as such: the rights on all that is theirs, too."""

EVERYTHING = OF_USER | {"RIGHT_ALL", "RIGHT_SEND_INVITES"}

UNIVERSAL = frozenset(
    right
    for right in EVERYTHING
    if not right.endswith(("_ALL", "_SETTINGS_API_KEYS", "_DEVICES_READ_KEYS", "_DEVICES_WRITE_KEYS"))
)
"""What an admin may do with anything."""

_IMPLIED = {f"RIGHT_{kind.upper()}_ALL": rights for kind, rights in OF_KIND.items()} | {
    "RIGHT_ALL": EVERYTHING
}


@dataclass(frozen=True, slots=True)
class Key:
    """An API key of *owner* with *rights*.

    *on* is what the owner, a user or an organization, may do as a collaborator; a key never has more than
    both its owner and itself. An application's or a gateway's key is good for nothing else.
    """

    owner: Entity
    rights: frozenset[str]
    on: Mapping[Entity, frozenset[str]] = field(default_factory=dict)
    admin: bool = False
    name: str = "standin"
    expires: str = ""
    """RFC 3339; shown in `auth_info`, and from then on the key is refused."""

    @classmethod
    def of(cls, owner: Entity, *rights: str, on: Mapping[Entity, Iterable[str]] | None = None) -> Key:
        """A key with *rights*, all of its kind without any; *on* without rights means all of that kind.

        An entity *on* which the owner has only rights the key lacks is listed, and forbidden.
        """
        on = on or {}
        members = {each: frozenset(given) or OF_KIND[parent(each).kind] for each, given in on.items()}
        return cls(owner, frozenset(rights) or own_rights(owner), members)

    def narrowed(self, rights: Iterable[str] | None, without: Iterable[Entity]) -> Key:
        """Only *rights* of this key, and nothing on the entities *without* any more."""
        gone = frozenset(without)
        kept = self.rights if rights is None else self.rights & frozenset(rights)
        on = {each: given for each, given in self.on.items() if each not in gone}
        return replace(self, rights=kept, on=on)

    def rights_on(self, entity: Entity) -> frozenset[str]:
        """What it may do with *entity*, should that exist (`ListRights`)."""
        asked = parent(entity)
        mine = implied(self.rights)
        if self.admin or asked == self.owner:
            return mine & own_rights(asked)
        return mine & (implied(self.on.get(asked, ())) | implied(self.on.get(entity, ())))

    def sees(self, entities: Iterable[Entity], rights: Collection[str]) -> bool:
        """Whether it has one of *rights* on one of *entities*; without *rights* anybody sees it."""
        return not rights or any(not self.rights_on(each).isdisjoint(rights) for each in entities)


Rights: TypeAlias = Key | frozenset[Entity] | Literal["all"]
"""What a token may see: a key; all rights on these entities; or `all`, an admin's key."""


def as_key(rights: Rights) -> Key:
    """*rights* written out: one entity is the owner of the key, several are what a user collaborates on."""
    if isinstance(rights, Key):
        return rights
    if rights == ALL:
        return Key(ADMIN, EVERYTHING, admin=True)
    if len(rights) == 1 and (entity := next(iter(rights))).kind != "device":
        return Key(entity, own_rights(entity))
    user = next((each for each in sorted(rights) if each.kind == "user"), Entity("user", "standin"))
    on = {each: OF_KIND[parent(each).kind] for each in sorted(rights) if each != user}
    return Key(user, OF_USER if rights else frozenset(), on)


ADMIN = Entity("user", "admin")


def own_rights(entity: Entity) -> frozenset[str]:
    """All there is to be had on *entity*."""
    return OF_USER if entity.kind == "user" else OF_KIND[parent(entity).kind]


def implied(rights: Iterable[str]) -> frozenset[str]:
    """*rights* with what `RIGHT_GATEWAY_ALL` and the like stand for (pkg/ttnpb/rights.go in v3.32)."""
    found = frozenset(rights)
    return found.union(*(_IMPLIED[each] for each in found if each in _IMPLIED))


def parent(entity: Entity) -> Entity:
    """Where the rights on *entity* are looked up: a device has none of its own."""
    if entity.kind != "device":
        return entity
    return Entity("application", entity.id.partition("/")[0])
