"""Who belongs to a group: a table of conditions, which nest. What a rule means for a VM is in workers/membership.py."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from workers.models import Model


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _filled(patterns: tuple[str, ...]) -> tuple[str, ...]:
    if not patterns or "" in patterns:
        raise ValueError("a name or pattern, or a list of them, none of them empty; leave the key out to allow all")
    return patterns


def _paths(patterns: tuple[str, ...]) -> tuple[str, ...]:
    return _filled(tuple(pattern.strip("/") for pattern in patterns))


#: one pattern or a list of them, any of which will do; * stands for any text, ? for one character
_SCHEMA = WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]})
Patterns = Annotated[tuple[str, ...], BeforeValidator(_one_or_many), AfterValidator(_filled), _SCHEMA]
Paths = Annotated[tuple[str, ...], BeforeValidator(_one_or_many), AfterValidator(_paths), _SCHEMA]


class Rule(Model):
    """All that is given must hold. Names are compared as vCenter shows them, capitals and all."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    #: the VM's name
    name: Patterns | None = None
    #: its folder or one above it, as a path that begins with the datacenter: "DC0/Production"
    folder: Paths | None = None
    #: a tag that it has: "category:name", or the name alone
    tag: Patterns | None = None
    #: a datastore that it uses
    datastore: Patterns | None = None
    #: the cluster that it runs in; of a host without a cluster, the host's name
    cluster: Patterns | None = None
    #: a suspended VM is off
    power: Literal["on", "off"] | None = None
    #: whether it is a template
    template: bool | None = None
    #: rules of which at least one must hold
    any: tuple[Rule, ...] | None = Field(default=None, min_length=1)
    #: rules that must all hold
    all: tuple[Rule, ...] | None = Field(default=None, min_length=1)
    #: a rule that must not hold
    not_: Rule | None = Field(default=None, alias="not")

    @model_validator(mode="after")
    def _says_something(self) -> Rule:
        if not self.model_fields_set:
            raise ValueError('an empty rule: give it a condition (name = "*" is every VM)')
        return self

    @property
    def uses_tags(self) -> bool:
        inner = (*(self.any or ()), *(self.all or ()), *((self.not_,) if self.not_ else ()))
        return self.tag is not None or any(rule.uses_tags for rule in inner)
