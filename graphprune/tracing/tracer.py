"""The tracer: runs a model's own Python on meta tensors and writes down the graph and the tape as it goes.

Every call of torch on a tensor becomes a node (``__torch_function__``), every call of a layer one (``call_module``); the ATen
operators that they run go onto the tape. The model sees real tensors and real numbers, so its control flow, ``len``,
iteration and assertions need nothing of us.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from typing import Any, Final

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from graphprune.channels.packed import with_batch_sizes
from graphprune.channels.tape import Recording, boundary_of, opaque_refusal, run_opaque, stand_ins, with_index_tensors
from graphprune.channels.values import Values
from graphprune.ir.handed import Taken, handed_over
from graphprune.rules import tensors_in
from graphprune.tracing.answers import Answers, holds_number
from graphprune.tracing.checks import LOOKS
from graphprune.tracing.constants import Constants
from graphprune.tracing.conversions import Conversions
from graphprune.tracing.draws import draws_watched
from graphprune.tracing.facts import FACTS
from graphprune.tracing.gradients import Gradients
from graphprune.tracing.guards import Guards
from graphprune.tracing.hints import compiling, without_hints, without_scripts
from graphprune.tracing.inputs import ModuleCall, with_names
from graphprune.tracing.repeat import Repeat
from graphprune.tracing.results import Mark, Results
from graphprune.tracing.selections import Selections
from graphprune.tracing.shadow import Left, Shadow
from graphprune.tracing.sizes import NOTING, SizeFloat, origin_of, plain, read_whole
from graphprune.tracing.source import source_line
from graphprune.tracing.targets import CONSTANT_FACTORIES, is_bare, is_layer, opened, spell
from graphprune.tracing.tensor_types import check_made, typed
from graphprune.tracing.training import DROPS, Mode, Question, can_ask_again
from graphprune.tracing.untraced import LooksAtValues, Untraceable, why_untraced
from graphprune.tracing.writer import Writer


class Tracer(TorchFunctionMode):
    """Runs a model, and has the graph and the tape of the run written.

    mode: what ``self.training`` is for the model; its ``consulted`` says whether the whole must run in the other mode too, after
    the calls of modules in :attr:`questions`. earlier: a finished run of the model in eval mode, which this one repeats in train
    mode. still: paths of modules that are in eval mode all the same, with all that is in them. after: a run of other inputs, after
    which this one comes.
    writer: has the graph and the tape. opaque: modules that do not trace, with the reason. failed: the innermost module that a
    run has failed in.
    """

    def __init__(
        self,
        root: nn.Module,
        mode: Mode,
        earlier: Tracer | None = None,
        still: Iterable[str] = (),
        after: Tracer | None = None,
    ) -> None:
        super().__init__()
        self.opaque: dict[str, str] = {}
        self.failed = ""
        self.mode = mode
        self.questions: list[Question] = []
        self._root = root
        self._still = {f"{path}.{name}".removesuffix(".") for path in still for name, _ in root.get_submodule(path).named_modules()}
        self._taking_bool: set[str] = earlier._taking_bool if earlier else set()  # modules that pass their mode to C functions
        self._taking_numbers: set[Any] = earlier._taking_numbers if earlier else set()  # C functions that read tensors as numbers
        self._unaware: set[str] = earlier._unaware if earlier else set()  # modules that trace, if at all, without knowing of it
        self._recording = Recording(check_made)
        self._recording.announces = self
        self._results: Results = Results(self._recording, earlier._results if earlier else None)
        before, left = earlier or after, after.left_behind() if after else {}
        self._shadow: Shadow = Shadow(root, self._call_module, mode, before._shadow if before else None, left)
        self._code: Conversions = earlier._code if earlier else Conversions(self._shadow.root)
        self.writer: Writer = self._new_writer(earlier)
        self._values: Values = earlier._values if earlier else self._new_values()
        self._guards = Guards(self.writer, self._values.is_any_size, after.writer if after else None)
        self._recording.values = self._values
        self._answers = Answers(self.writer, self._guards, self._values, self._traced)
        self._constants = Constants(self._guards.varies)
        self._selections = Selections(self._values.is_any_size, self.writer.note_check)
        self.gradients = Gradients(root)
        self._in_layer = False
        self._unanswered: Exception | None = None  # the last question about values that the running module's code asked

    def _new_writer(self, earlier: Tracer | None) -> Writer:
        parts = (self._recording, self._results, self._shadow)
        return Repeat(*parts, earlier.writer) if earlier else Writer(*parts)

    def _new_values(self) -> Values:
        tape, recording = self.writer.tape, self._recording
        return Values(self._shadow.real, recording.numbers, lambda: chain(tape.operations(), recording.operations))

    # -- one run ---------------------------------------------------------------------------------------------------------

    def placeholder(self, name: str, value: Any, *, decides: bool) -> Any:
        """A placeholder for an argument; returns what the model gets for it. decides: whether its integers may answer questions."""
        given = self._results.of(name, lambda: stand_ins(value))
        if decides:
            self._values.give(given, value)
        return self.writer.write(self.writer.node("placeholder", name), given)

    def hand_over(self, tensor: torch.Tensor, to: str, taken: Taken) -> torch.Tensor:
        """What a scope gets for a tensor that another one has made."""
        with self._recording:
            given = self._results.of(handed_over, lambda: self.writer.apart(tensor, (tensor,)))
        arguments = (self.writer.argument(tensor), to, taken.argument, taken.at, taken.read)
        result: torch.Tensor = self.writer.write(self.writer.node("call_function", handed_over, arguments), given)
        return result

    def options(self, values: Mapping[str, Any]) -> None:
        """Placeholders for arguments that are no tensors: the graph does what these values say, and takes no others."""
        nodes = {}
        for name, value in values.items():
            nodes[name] = self.writer.node("placeholder", name, (value,))
            self.writer.write(nodes[name], value)
        for name, node in nodes.items():
            message = f"{name} is {values[name]!r} in this graph, as in the example inputs. Capture the model anew for another."
            same = self.writer.write_call(operator.eq, (node, values[name]), True)
            self.writer.write_call(torch._assert, (same, message), None)

    def run(self, call: ModuleCall, placeholders: Mapping[str, Any], *, announced: bool) -> Any:
        """Run one module of the model (at an empty path the model itself) and write what it does; returns its result.

        placeholders: what :meth:`placeholder` returned, by argument name; the call's other arguments are passed as they are.
        announced: tell the model that it is traced, as torch.export does: libraries then leave out what looks at data.
        """
        module = self._shadow.root.get_submodule(call.path)
        args = tuple(placeholders.get(name, value) for name, value in with_names(module, call.inputs.args))
        kwargs = {name: placeholders.get(name, value) for name, value in call.inputs.kwargs.items()}
        self.writer.module = call.path
        with self.running(announced):
            return self._run(module, call.path, self.writer.mark(), args, kwargs)

    @contextmanager
    def running(self, announced: bool) -> Iterator[None]:
        """What is called within is traced."""
        around = (
            torch.no_grad(),
            compiling(announced),
            draws_watched(),
            self._code.remembered(),
            without_hints(),
            without_scripts(),
        )
        with ExitStack() as within:
            for mode in (*around, self._recording, self, _noting(self._guards), self.gradients.watched()):
                within.enter_context(mode)
            yield

    def finish(self, result: Any) -> None:
        """Write the output node."""
        self.writer.finish(result)

    def left_behind(self) -> Left:
        """What the run has changed in the model."""
        return self._shadow.left_behind()

    @property
    def keeps_values(self) -> bool:
        """Whether what the run has changed in the model was computed of values that it was given, as a state is."""
        kept = [list(attributes.values()) for attributes in self.left_behind().values()]
        return not self._values.are_of_sizes(tensors_in(kept))

    @property
    def checks(self) -> int:
        """How many sizes and comparisons of sizes the graph checks."""
        return self._guards.count

    @property
    def compares_what_it_keeps(self) -> bool:
        """Whether code that writes attributes has compared a size with a number, as it does to use again what it has kept."""
        return self._guards.of_writers

    def release(self) -> None:
        """Let go of the copy of the model that has run."""
        self._shadow.release()

    # -- functions -------------------------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        body = self._selections.body(func, args)
        own = FACTS.get(func)
        if own is not None:
            return own(self.writer, *args, **kwargs)
        body = body or (typed if func is torch.Tensor.type else opened(func))
        if body is not None:
            with self:
                return body(*args, **kwargs)
        constant = self._constants.has(func, args, kwargs)
        written = self._constants.written(func, args, kwargs)
        if written and (not constant or any(map(self._shadow.knows, written))):
            self._unfold(written)
        elif constant:
            return self._constants.compute(func, args, kwargs)
        if self.mode.plain and (left := self._of_train_mode_alone(func, args, kwargs)) is not None:
            return left
        if func in LOOKS and (answer := self._answers.to(func, args, kwargs)) is not None:
            return answer
        return self._write(func, *self._run_call(func, args, kwargs))

    def _run_call(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, Any, Any]:
        """The arguments of a call as the graph gets them, and its result."""
        before = self._results.count
        if func in self._taking_numbers:
            args, kwargs = self._answers.numbers_in((args, kwargs))
        try:
            return args, kwargs, self._results.of(func, lambda: self._call(func, args, kwargs))
        except RuntimeError:
            if func in self._taking_numbers or not holds_number((args, kwargs)):
                raise
            self._taking_numbers.add(func)
            self._results.take_back(before)
            self._recording.take()  # what it ran before it failed
            return self._run_call(func, args, kwargs)

    def _write(self, func: Any, args: Any, kwargs: Any, result: Any) -> Any:
        if not isinstance(result, torch.Tensor) and not tensors_in((result,)) and func is not torch.Tensor.__setitem__:
            self._recording.take()
            return result
        target = spell(func, len(args) == 2 and not kwargs)
        node_args = self.writer.argument(tuple(read_whole(item) or item for item in args) if func in CONSTANT_FACTORIES else args)
        if target.attribute:
            node_args = (node_args[0], target.attribute)
        elif target.swapped:
            node_args = (node_args[1], node_args[0])
        node = self.writer.node(target.op, target.target, node_args, self.writer.argument(kwargs))
        if func in _UNBINDING:
            given = self.writer.operands((*args, *kwargs.values(), 0))
            self._guards.note_places(given[0], given[1] % given[0].dim())
        self.gradients.note_call(self.writer.module, node)
        self._selections.note(func, args, kwargs, result, self._recording.operations)
        return self.writer.write(node, result)

    def _traced(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        """The result of a call, as if the model had made it."""
        with self:
            return func(*args, **kwargs)

    def _call(self, func: Any, args: Any, kwargs: Any) -> Any:
        given, named = self.writer.operands(args), self.writer.operands(kwargs)
        try:
            func, given = with_batch_sizes(self._recording, func, given)
            given = with_index_tensors(func, args, given)
            return self.writer.apart(func(*given, **named), (given, named))
        except Exception as error:
            if func not in LOOKS:
                raise
            self._unanswered = LooksAtValues(func, source_line())
            raise self._unanswered from error

    def _of_train_mode_alone(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What a call that eval mode lacks returns, which is its argument: as it is, or with what is noted; None for any other."""
        if self._results.expects(func):
            return None
        if func in DROPS:
            return self._dropped(func, *args, **kwargs)
        if func is torch.Tensor.contiguous:
            same = self.writer.operand(args[0]).is_contiguous(*args[1:], **kwargs)
        else:
            same = func is torch.Tensor.add_ and len(args) == 2 and not kwargs and self.writer.adds(*args)
        return args[0] if same else None

    def _dropped(self, func: Any, tensor: torch.Tensor, p: Any = 0.5, training: Any = True, inplace: bool = False) -> Any:
        fixed = isinstance(p, (float, SizeFloat)) and origin_of(p) is None
        return self.writer.drops(func, tensor, plain(p)) if fixed and self.writer.operands(training) and not inplace else None

    def _unfold(self, family: list[torch.Tensor]) -> None:
        """A constant that is written into is made anew in every call, with those that share its memory."""
        first = family[0]
        if any(held.dtype != first.dtype for held in family):
            raise Untraceable("a constant is written into that is also read as another dtype")
        self._constants.drop(family)
        with _disable_current_modes():
            size = first.untyped_storage().nbytes() // first.element_size()
            whole = first if len(family) == 1 else first.as_strided((size,), (1,), 0)
        with self:
            fresh = whole.clone()
            for held in family:
                view = fresh if held is whole else fresh.as_strided(held.shape, held.stride(), held.storage_offset())
                self._shadow.replace(held, view)

    # -- modules ---------------------------------------------------------------------------------------------------------

    def _call_module(self, module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._in_layer:
            return module._call_impl(*args, **kwargs)
        added = self.mode.plain and is_bare(module) and not self._results.expects(path)  # by train mode: see what it calls
        if is_layer(module) and not added:
            return self._call_layer(module, path, args, kwargs)
        if isinstance(module, torch.jit.ScriptModule):
            return self._call_opaque(module, path, args, kwargs, Untraceable("scripted (TorchScript), it has no Python to trace"))
        before = self.writer.mark()
        consulted, asked = self.mode.consulted, len(self.questions)
        self.mode.consulted = False
        around, self.writer.module = self.writer.module, path
        try:
            with compiling(torch.compiler._is_compiling_flag and path not in self._unaware):
                result = self._run(module, path, before, args, kwargs)
            asks = self.mode.consulted
        except Exception as error:
            self.writer.discard_after(before)
            self._unanswered = None
            del self.questions[asked:]
            if torch.compiler._is_compiling_flag and path not in self._unaware:
                self._unaware.add(path)
                with suppress(Exception):
                    return self._call_module(module, path, args, kwargs)
                raise
            self.failed = self.failed or path
            return self._call_opaque(module, path, args, kwargs, error)
        finally:
            self.mode.consulted |= consulted
            self.writer.module = around
        if asks and is_bare(module) and all(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(result)):
            # Nothing but a change of behaviour between modes (stochastic depth): it stays a module, which knows both. (Of an object
            # that it returns, the tensors could not be told.)
            self.mode.consulted = consulted
            self.writer.discard_after(before)
            return self._call_layer(module, path, args, kwargs)
        if asks and can_ask_again((*args, *kwargs.values(), result)):
            self.mode.consulted = consulted
            self.questions[asked:] = [Question(path, args, kwargs, result, before, self.writer.mark())]
        return result

    def _run(self, module: nn.Module, path: str, before: Mark, args: Any, kwargs: Any) -> Any:
        """Run a module's own code. Raises what has stopped a question about values, where that code went on without an answer."""
        result = self._result(module, path, before, args, kwargs)
        if self._unanswered is not None:
            raise self._unanswered
        return result

    def _result(self, module: nn.Module, path: str, before: Mark, args: Any, kwargs: Any) -> Any:
        mode = self.mode
        if path in self._still:
            mode = module.__dict__["training"] = Mode(False)
        if path not in self._taking_bool:
            try:
                return module._call_impl(*args, **kwargs)
            except TypeError as error:
                if Mode.__name__ not in str(error):
                    raise error from None
            self._taking_bool.add(path)
            self.writer.discard_after(before)
        # C functions take nothing but a bool for the mode.
        module.__dict__["training"] = bool(mode)
        return module._call_impl(*args, **kwargs)

    def _call_layer(self, module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module.__dict__["training"] = False
        self._in_layer = True
        try:
            with torch._C.DisableTorchFunction():
                result = self._results.of(path, lambda: self._call(module._call_impl, args, kwargs))
                node = self.writer.node("call_module", path, self.writer.argument(args), self.writer.argument(kwargs))
                self.gradients.note_call(self.writer.module, node)
                return self.writer.write(node, result)
        except Exception:
            self.failed = path
            raise
        finally:
            self._in_layer = False

    def _call_opaque(self, module: nn.Module, path: str, args: Any, kwargs: Any, error: Exception) -> Any:
        with torch._C.DisableTorchFunction():
            given, named = self.writer.operands(args), self.writer.operands(kwargs)
            try:
                result = self._results.of(path, lambda: run_opaque(self._root.get_submodule(path), given, named))
            except Exception:
                raise error from None
            for inner in [name for name in self.opaque if name.startswith(f"{path}.")]:
                del self.opaque[inner]
            self.opaque[path] = why_untraced(error)
            self.failed = ""
            node = self.writer.node("call_module", path, self.writer.argument(args), self.writer.argument(kwargs))
            self.writer.write(node, result)
            step = self.writer.tape.steps[-1]
            step.refusal, step.boundary = opaque_refusal(path, self.opaque[path]), boundary_of(module, given, named)
            return result


@contextmanager
def _noting(guards: Guards) -> Iterator[None]:
    before = NOTING.set(guards.note)
    try:
        yield
    finally:
        NOTING.reset(before)


_UNBINDING: Final = (torch.unbind, torch.Tensor.unbind)
