"""Which work on the fake GPU is done before which other, and what nothing orders: races between streams.

Streams are instrumented as in the papers on race detection by vector clocks: each counts its operations, and
has a clock that says up to which operation of every other stream all is done before what it does next. Only
waits advance it: of a stream for another or for an event, and of the host, after which whatever is queued
comes later. A tensor's memory is known by its storage, so that views of it are the same memory.
"""

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

Clock = Counter
"""How many operations of each stream are done; ``a | b``: those that are done in a or in b."""


@dataclass(eq=False)
class Memory:
    """What was done with the memory of a storage.

    Attributes:
        ref: tells when it has been freed.
        owner: the stream that it was allocated on, whose later allocations may take it once it is freed.
        what: the place of the last writing.
        written: its stream and number.
        used: the last use by each stream, written or read.
        recorded: streams that the allocator was told of with record_stream.
    """

    ref: StorageWeakRef
    owner: "Stream"
    what: str
    written: tuple["Stream", int]
    used: Clock = field(default_factory=Clock)
    recorded: set["Stream"] = field(default_factory=set)


class Streams:
    """The streams of a fake GPU.

    Args:
        place: names the function that is running.

    Attributes:
        current: the one on which work is queued.
        default: the one that is current if no other is.
        races: those found, in words, each once.
    """

    def __init__(self, place):
        self.default = self.current = Stream(self, "the default stream")
        self.races = []
        self._place = place
        self._all, self._host = [self.default], Clock()
        self._memory, self._shared = {}, set()

    def new(self, name=None):
        """Another stream."""
        self._all.append(Stream(self, name or f"stream {len(self._all)}"))
        return self._all[-1]

    @contextmanager
    def entered(self, stream):
        """Make a stream the current one inside the block."""
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def host_waits(self, *, for_all=False):
        """The host waits for the current stream, or for all."""
        for stream in self._all if for_all else [self.current]:
            self._host |= stream.clock

    def ran(self, operation, arguments, results):
        """An operation was queued on the current stream.

        Args:
            operation: an overload of an operator, which tells what it writes.
            arguments: positional ones, and those by name.
            results: what it returned.
        """
        if operation.is_view or operation.namespace == "prim":
            return
        positional, named = arguments
        written = []
        for number, argument in enumerate(operation._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                given = positional[number] if number < len(positional) else named.get(argument.name)
                written += _on_gpu(given)
        self.touched(f"{operation.overloadpacket.__name__}", _on_gpu(arguments), written, _on_gpu(results))

    def touched(self, operation, read, written, results=()):
        """Work was queued on the current stream that reads, writes and makes these tensors."""
        stream, what = self.current, f"{self._place()} ({operation})"
        stream.clock |= self._host
        stream.clock[stream] += 1
        now = stream.clock[stream]
        keys = {_key(tensor) for tensor in read}
        for tensor in results:
            if _key(tensor) not in keys:
                self._check_reuse(stream, what)
                self._memory[_key(tensor)] = self._begin(tensor, what, now)
        overwritten = {_key(tensor) for tensor in written}
        for tensor in {_key(tensor): tensor for tensor in (*read, *written)}.values():
            memory = self._of(tensor)
            writes = _key(tensor) in overwritten
            self._check(memory, stream, what, writes)
            memory.used[stream] = now
            if set(memory.used) != {memory.owner}:
                self._shared.add(memory)
            if writes:
                memory.what, memory.written = what, (stream, now)

    def record(self, tensor, stream):
        """``tensor.record_stream(stream)``."""
        self._of(tensor).recorded.add(stream)

    def _check(self, memory, stream, what, writes):
        writer, number = memory.written
        if stream.clock[writer] < number:
            self._report(
                f"{what} on {stream.name} does not wait for {memory.what} on {writer.name}, "
                f"whose result it {'overwrites' if writes else 'reads'}"
            )
        if writes:
            for reader, number in memory.used.items():
                late = number > memory.written[1] or reader is not writer
                if late and stream.clock[reader] < number:
                    self._report(
                        f"{what} on {stream.name} does not wait for {reader.name}, "
                        f"which uses what it overwrites: the result of {memory.what}"
                    )

    def _check_reuse(self, stream, what):
        """An allocation may take any memory of its stream that has been freed."""
        for memory in [m for m in self._shared if m.owner is stream and m.ref.expired()]:
            for user, number in memory.used.items():
                if user not in memory.recorded and stream.clock[user] < number:
                    self._report(
                        f"{what} on {stream.name} may take the freed memory of {memory.what} "
                        f"before {user.name} is done with it: record_stream is missing"
                    )
            self._shared.discard(memory)

    def _begin(self, tensor, what, now):
        stream = self.current
        ref = StorageWeakRef(tensor.untyped_storage())
        return Memory(ref, stream, what, (stream, now), Clock({stream: now}))

    def _of(self, tensor):
        """The memory of a tensor; of one that was there before the streams, all is done."""
        if _key(tensor) not in self._memory:
            ref = StorageWeakRef(tensor.untyped_storage())
            self._memory[_key(tensor)] = Memory(ref, self.default, "earlier work", (self.default, 0))
        return self._memory[_key(tensor)]

    def _report(self, race):
        if race not in self.races:
            self.races.append(race)


class Stream:
    """Stands for ``torch.cuda.Stream``."""

    def __init__(self, streams, name):
        self.name, self.clock = name, Clock()
        self._streams = streams

    def wait_stream(self, other):
        self.clock |= other.clock

    def wait_event(self, event):
        self.clock |= event.clock

    def record_event(self, event=None):
        event = event or Event(self._streams)
        event.record(self)
        return event

    def synchronize(self):
        self._streams._host |= self.clock

    def has_waited_for(self, other):
        """Whether all that has been queued on another stream is done before what is queued here next."""
        return self.clock[other] >= other.clock[other]


class Event:
    """Stands for ``torch.cuda.Event``."""

    def __init__(self, streams):
        self.clock = Clock()
        self._streams = streams

    def record(self, stream=None):
        self.clock = Clock((stream or self._streams.current).clock)

    def wait(self, stream=None):
        (stream or self._streams.current).wait_event(self)

    def synchronize(self):
        self._streams._host |= self.clock


def _on_gpu(given):
    return [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor) and leaf.is_cuda]


def _key(tensor):
    return tensor.untyped_storage()._cdata
