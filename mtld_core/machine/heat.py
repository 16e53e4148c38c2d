"""Heat: training rests while its GPU is too hot, and a run that rests in vain ends.

A thread of its own reads the sensors.
"""

import collections
import contextlib
import dataclasses
import threading
import time
import typing

import torch

from mtld_core.config import AtLeastOne, NotNegative, Positive, Settings, check

SECONDS_TO_END = 5  # for a reading in progress: a call into a broken driver may never come back
MINUTES_A_DAY = 24 * 60

# NVML's calls, by what they tell, newest first: old bindings and drivers lack the new ones
TEMPERATURE = ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature")
SLOWDOWN = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")


# ---- what readings mean


@dataclasses.dataclass(frozen=True)
class HeatConfig(Settings):
    """When training rests so that the GPU cools down, and when it gives up."""

    # °C: above it, or where the GPU slows down because of heat, training rests; 0: no guard
    max_temperature: NotNegative[float] = 85.0
    resume_temperature: float = 75.0  # °C below which it goes on
    heat_poll_seconds: float = 2.0  # between two looks at the sensors
    heat_rest_minutes: NotNegative[float] = 1.0  # a rest takes at least this long
    heat_patience_minutes: float = 15.0  # after a rest as long as this, the run is saved and stopped
    # so many rests begun within heat_window_minutes: the run is saved and stopped
    heat_alerts: AtLeastOne[int] = 5
    heat_window_minutes: Positive[float] = 5.0

    def __post_init__(self):
        super().__post_init__()
        check(
            not self.max_temperature or 0 < self.resume_temperature < self.max_temperature,
            f"resume_temperature must be above 0 and below max_temperature={self.max_temperature}, not "
            f"{self.resume_temperature}",
        )
        check(
            0 < self.heat_poll_seconds <= 60,
            f"heat_poll_seconds must be in (0, 60], not {self.heat_poll_seconds}",
        )
        check(
            self.heat_rest_minutes < self.heat_patience_minutes <= MINUTES_A_DAY,
            f"heat_patience_minutes must be above heat_rest_minutes={self.heat_rest_minutes} and at most "
            f"{MINUTES_A_DAY}, not {self.heat_patience_minutes}",
        )


class Reading(typing.NamedTuple):
    """What a GPU's sensors say; empty where there are none."""

    temperature: int | None = None  # °C
    slowed: bool = False  # it clocks itself down because of heat

    def __str__(self):
        return "temperature not known" if self.temperature is None else f"{self.temperature} °C"


class Heat:
    """Decides from readings whether training may go on. One that never sees a reading never interferes.

    config: a HeatConfig. resting: why training has to wait now, "" where it may go on. newest: the latest
    Reading. emergency: why the run must end, "" while it need not. news: lines for a person; whoever prints
    them takes them out.
    """

    newest, highest = Reading(), None
    resting, emergency = "", ""
    since = 0.0  # when the present rest began, seconds
    rests = 0

    def __init__(self, config):
        self.config = config
        self.alerts = collections.deque()  # when the newest rests began
        self.news = collections.deque()

    def see(self, reading, now):
        """Take a Reading made at `now`, in seconds of a clock that never goes back."""
        self.newest = reading
        degrees = reading.temperature
        if degrees is not None:
            self.highest = max(degrees, self.highest or degrees)
        if self.resting:
            self._rest(reading, now)
        elif reading.slowed or (degrees or 0) > self.config.max_temperature:
            self._alert(reading, now)

    def _rest(self, reading, now):
        config, rested = self.config, now - self.since
        cool = not reading.slowed and (reading.temperature or 0) < config.resume_temperature
        if cool and rested >= 60 * config.heat_rest_minutes:
            self.news.append(f"the GPU has rested for {rested:.0f} s: {reading}; training goes on")
            self.resting = ""
        else:
            self.resting = f"cooling down: {reading}"

    def _alert(self, reading, now):
        config = self.config
        found = f"{reading}, and it slows down because of that" if reading.slowed else str(reading)
        self.since = now
        self.rests += 1
        self.alerts.append(now)
        while now - self.alerts[0] > 60 * config.heat_window_minutes:
            self.alerts.popleft()
        if len(self.alerts) >= config.heat_alerts:
            self.emergency = (
                f"the GPU got too hot {len(self.alerts)} times within {config.heat_window_minutes:g} "
                f"minutes: {found}, max_temperature={config.max_temperature:g}"
            )
        else:
            self.news.append(
                f"the GPU is too hot: {found}; training rests until it is below "
                f"{config.resume_temperature:g} °C"
            )
        self.resting = f"cooling down: {reading}"

    def reason_to_end(self, now):
        """Why the run must end, "" while it need not.

        The loop itself asks: a sensor that hangs must not hold it for ever.
        """
        config = self.config
        if self.resting and now - self.since > 60 * config.heat_patience_minutes:
            self.emergency = (
                f"the GPU stays too hot: {self.newest} after {config.heat_patience_minutes:g} minutes of "
                f"rest, max_temperature={config.max_temperature:g}, "
                f"resume_temperature={config.resume_temperature:g}"
            )
        return self.emergency

    def facts(self):
        """What report.json says of this session, a dict; None where no sensor ever answered."""
        return None if self.highest is None else {"rests": self.rests, "highest_temperature": self.highest}


# ---- where readings come from


class Sensor:
    """One NVIDIA GPU's sensors, read through NVML.

    What NVML lacks or refuses is told once, and asked for again every time. uuid: NVML's numbers of GPUs are
    not CUDA's. tell: is called with a line for a person.
    """

    handle = None

    def __init__(self, uuid, tell):
        self.uuid, self.tell = uuid, tell
        self.told = set()

    def read(self):
        """A Reading; an empty one where there is no sensor, or not now."""
        try:
            import pynvml as nvml

            if self.handle is None:
                self.handle = _open(nvml, self.uuid)
        except ImportError:
            self._missing("temperature", "the package nvidia-ml-py is not installed")
            return Reading()
        except nvml.NVMLError as error:
            self._missing("temperature", error)
            return Reading()
        degrees = self._ask(nvml, "temperature", TEMPERATURE, nvml.NVML_TEMPERATURE_GPU)
        if degrees is None:
            self.close()  # a GPU that was lost and returns has another handle
            return Reading()
        reasons = self._ask(nvml, "thermal slowdown", SLOWDOWN) or 0
        by_software = nvml.nvmlClocksThrottleReasonSwThermalSlowdown
        by_hardware = nvml.nvmlClocksThrottleReasonHwThermalSlowdown
        return Reading(degrees, bool(reasons & (by_software | by_hardware)))

    def close(self):
        if self.handle is not None:
            import pynvml as nvml

            self.handle = None
            with contextlib.suppress(nvml.NVMLError):
                nvml.nvmlShutdown()

    def _ask(self, nvml, what, calls, *arguments):
        """What the first of `calls` that works answers, or None."""
        for call in calls:
            try:
                return getattr(nvml, call)(self.handle, *arguments)
            except (AttributeError, nvml.NVMLError) as error:
                why = error
        self._missing(what, why)

    def _missing(self, what, why):
        if what not in self.told:
            self.told.add(what)
            self.tell(
                f"no sensor for the GPU's {what} ({why}): training goes on without it for as long as that "
                "lasts"
            )


def _open(nvml, uuid):
    nvml.nvmlInit()
    try:
        return nvml.nvmlDeviceGetHandleByUUID(uuid)
    except nvml.NVMLError:
        nvml.nvmlShutdown()
        raise


def uuid_of(device):
    """NVML's name of a torch device; "" for one that it does not know."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else ""


@contextlib.contextmanager
def watched(heat, device):
    """While the block runs, a thread shows `heat` what the sensors of a torch device say.

    There is none for a CPU, or with the guard off.
    """
    uuid = uuid_of(device) if heat.config.max_temperature else ""
    if not uuid:
        yield
        return
    sensor, over = Sensor(uuid, heat.news.append), threading.Event()

    def watch():
        while not over.is_set():
            heat.see(sensor.read(), time.monotonic())
            over.wait(heat.config.heat_poll_seconds)
        sensor.close()

    thread = threading.Thread(target=watch, name="heat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(SECONDS_TO_END)
