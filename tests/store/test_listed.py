"""What a folder of a bucket holds: by one list where that is one answer, one by one where it would be hundreds."""

from __future__ import annotations

from workers.store.bucket_cache import PAGE, Listed


class Folder:
    def __init__(self, count: int) -> None:
        self.held = {f"{n:016x}.pack" for n in range(count)}
        self.heads = self.lists = 0

    def names(self) -> list[str]:
        self.lists += -(-len(self.held) // PAGE)
        return sorted(self.held)

    def ask(self, listed: Listed, number: int) -> bool:
        def there() -> bool:
            self.heads += 1
            return f"{number:016x}.pack" in self.held

        return listed.has(f"{number:016x}.pack", there, self.names)


def test_few_of_many_are_asked_for_and_many_are_listed() -> None:
    folder = Folder(50 * PAGE)
    first = Listed()
    assert folder.ask(first, 5) and not folder.ask(first, 50 * PAGE) and (folder.heads, folder.lists) == (0, 50)
    folder.lists = 0
    again = Listed(first)  # the next run of this process
    assert all(folder.ask(again, n) for n in range(20) for _ in range(3)) and not folder.ask(again, 50 * PAGE)
    assert (folder.heads, folder.lists) == (21, 0)
    third = Listed(again)
    assert all(folder.ask(third, n) for n in range(200))
    assert (folder.heads, folder.lists) == (21 + 50, 50)


def test_few_names_are_always_listed_and_what_changed_here_is_known() -> None:
    folder = Folder(PAGE // 2)
    listed = Listed(Listed())
    assert folder.ask(listed, 3) and folder.ask(Listed(listed), 4) and (folder.heads, folder.lists) == (0, 2)
    listed.changed(f"{3:016x}.pack", False)
    listed.changed(f"{PAGE:016x}.pack", True)
    assert not folder.ask(listed, 3) and folder.ask(listed, PAGE) and folder.heads == 0


def test_what_was_removed_since_the_last_look_is_seen() -> None:
    folder = Folder(2 * PAGE)
    first = Listed()
    assert folder.ask(first, 7)
    folder.held.discard(f"{7:016x}.pack")
    assert folder.ask(first, 7), "as of the last look"
    assert not folder.ask(Listed(first), 7)
