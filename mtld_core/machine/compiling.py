"""compile=true: the parts of a system through torch.compile, as long as that gives eager's gradients."""

import torch

UNTRUE_BELOW = 2, 15  # of torch, whose inductor may compile a wrong gradient where it mixes reductions
EXACT, HALF = 1e-3, 2e-2  # how far gradients may be apart, as relative norm, in fp32 and in half precision


class Compiling:
    """Compiles modules, and checks each phase once: `check(phase, backward, parameters)`.

    dtype: that the networks compute in. say: takes the line that tells why all goes on in eager.
    """

    def __init__(self, modules, dtype, say):
        self.modules, self.say = list(modules), say
        self.limit = EXACT if dtype == torch.float32 else HALF
        self.checked = set()
        if torch.__version__ < UNTRUE_BELOW:
            import torch._inductor.config as inductor

            inductor.triton.mix_order_reduction = False
        for module in self.modules:
            module.compile()  # at its first call
        self.compiled = [module._compiled_call_impl for module in self.modules]

    def check(self, phase, backward, parameters):
        """Compare the gradients of a phase's first call with eager's, which may end compiling for good.

        backward: computes the gradients of `parameters` anew. Afterwards there are those of the last call.
        """
        if phase in self.checked or not self.modules:
            return
        self.checked.add(phase)
        self._switch(off=True)
        backward()
        wanted = _flat(parameters)
        self._switch(off=False)
        try:
            backward()
        except Exception as error:  # a compiler fails in many ways
            self._give_up(f"it fails with {type(error).__name__}")
            return
        apart = ((_flat(parameters) - wanted).norm() / wanted.norm().clamp(min=1e-30)).item()
        if not apart <= self.limit:
            self._give_up(f"in phase {phase!r} its gradients are {apart:.1%} off")

    def _switch(self, off):
        for module, compiled in zip(self.modules, self.compiled, strict=True):
            module._compiled_call_impl = None if off else compiled

    def _give_up(self, reason):
        self._switch(off=True)
        self.modules, self.compiled = [], []
        self.say(f"compile=true: going on without torch.compile, for {reason}")


def _flat(parameters):
    there = [parameter.grad.float().flatten() for parameter in parameters if parameter.grad is not None]
    return torch.cat(there)
