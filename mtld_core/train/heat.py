"""Heat: training rests while its GPU is too hot, and a run that rests in vain ends. A thread of its own reads
the sensors.
"""

import collections
import contextlib
import threading
import time
import typing

SECONDS_TO_END = 5  # for a reading in progress: a call into a broken driver may never come back


class Reading(typing.NamedTuple):
    """What a GPU's sensors say; empty where there are none."""

    temperature: int | None = None  # °C
    slowed: bool = False  # it clocks itself down because of heat
    power: float | None = None  # percent of its limit; None: not asked for, or not known


# ---- what readings mean


class Heat:
    """Decides from readings whether training may go on. One that never sees a reading never interferes.

    config: a TrainConfig. resting: why training has to wait now, "" where it may go on. temperature: the
    newest one in °C, None without a sensor. news: lines for a person; whoever prints them takes them out.
    """

    def __init__(self, config):
        self.config = config
        self.resting, self.since = "", 0.0  # since: when the present rest began, seconds
        self.hot, self.emergency = False, ""
        self.alerts = collections.deque()  # when the newest rests from heat began
        self.rests, self.temperature, self.highest = 0, None, None
        self.news = collections.deque()

    def see(self, reading, now):
        """Take a Reading made at `now`, in seconds of a clock that never goes back."""
        config, degrees = self.config, reading.temperature
        self.temperature = degrees
        if degrees is not None:
            self.highest = max(degrees, self.highest or degrees)
        too_hot = reading.slowed or (degrees is not None and degrees > config.max_temperature)
        cool = not reading.slowed and (degrees is None or degrees < config.resume_temperature)
        if too_hot and not self.hot:
            self._alert(
                _words(degrees) + (", and it slows down because of that" if reading.slowed else ""), now
            )
        elif self.hot and cool and now - self.since >= 60 * config.heat_rest_minutes:
            self.hot = False
            self.news.append(
                f"the GPU has rested for {now - self.since:.0f} s: {_words(degrees)}; training goes on"
            )

        # Full power under full load is healthy and stops with the load: so one poll of rest, never two in a
        # row, and no alert.
        breather = 0 < config.max_power_percent < (reading.power or 0) and not self.resting
        if (self.hot or breather) and not self.resting:
            self.since = now
        self.resting = (
            f"cooling down: {_words(degrees)}" if self.hot else "resting: much power" if breather else ""
        )

    def _alert(self, found, now):
        config = self.config
        self.hot = True
        self.rests += 1
        self.alerts.append(now)
        while now - self.alerts[0] > 60 * config.heat_window_minutes:
            self.alerts.popleft()
        if len(self.alerts) >= config.heat_alerts:
            self.emergency = (
                f"the GPU got too hot {len(self.alerts)} times within {config.heat_window_minutes:g} "
                f"minutes: {found}, "
                f"max_temperature={config.max_temperature:g}"
            )
        else:
            self.news.append(
                f"the GPU is too hot: {found}; training rests until it is below "
                f"{config.resume_temperature:g} °C"
            )

    def reason_to_end(self, now):
        """Why the run must end, "" while it need not. The loop itself asks: a sensor that hangs must not hold
        it for ever.
        """
        config = self.config
        if self.resting and now - self.since > 60 * config.heat_patience_minutes:
            self.emergency = (
                f"the GPU stays too hot: {_words(self.temperature)} after {config.heat_patience_minutes:g} "
                "minutes of rest, "
                f"max_temperature={config.max_temperature:g}, "
                f"resume_temperature={config.resume_temperature:g}"
            )
        return self.emergency

    def facts(self):
        """What report.json says about this session; None where no sensor ever answered."""
        return None if self.highest is None else {"rests": self.rests, "highest_temperature": self.highest}


def _words(degrees):
    return "temperature not known" if degrees is None else f"{degrees} °C"


# ---- where readings come from


class Sensor:
    """One NVIDIA GPU's sensors, read through NVML. What NVML lacks or refuses is told once, and asked for
    again every time.

    uuid: NVML's numbers of GPUs are not CUDA's. with_power: read that, too. tell: is called with a line for a
    person.
    """

    def __init__(self, uuid, with_power, tell):
        self.uuid, self.with_power, self.tell = uuid, with_power, tell
        self.handle, self.told = None, set()

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
        names = ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature")
        degrees = self._ask(nvml, "temperature", names, nvml.NVML_TEMPERATURE_GPU)
        if degrees is None:
            self.close()  # a GPU that was lost and returns has another handle
            return Reading()
        names = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
        reasons = self._ask(nvml, "thermal slowdown", names) or 0
        thermal = (
            nvml.nvmlClocksThrottleReasonSwThermalSlowdown | nvml.nvmlClocksThrottleReasonHwThermalSlowdown
        )
        return Reading(degrees, bool(reasons & thermal), self._power(nvml) if self.with_power else None)

    def close(self):
        if self.handle is not None:
            import pynvml as nvml

            self.handle = None
            with contextlib.suppress(nvml.NVMLError):
                nvml.nvmlShutdown()

    def _power(self, nvml):
        usage, limit = (
            self._ask(nvml, "power", (name,))
            for name in ("nvmlDeviceGetPowerUsage", "nvmlDeviceGetEnforcedPowerLimit")
        )
        return 100 * usage / limit if usage and limit else None

    def _ask(self, nvml, what, names, *args):
        """What the first of NVML's calls `names` answers, or None. New names come first: old bindings and
        drivers lack them.
        """
        for name in names:
            try:
                return getattr(nvml, name)(self.handle, *args)
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
    import torch

    return f"GPU-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else ""


@contextlib.contextmanager
def watched(heat, device):
    """While the block runs, a thread shows `heat` what a torch device's sensors say; none for a CPU or with
    the guard off.
    """
    config = heat.config
    uuid = uuid_of(device) if config.max_temperature else ""
    if not uuid:
        yield
        return
    sensor, over = Sensor(uuid, config.max_power_percent > 0, heat.news.append), threading.Event()

    def watch():
        while not over.is_set():
            heat.see(sensor.read(), time.monotonic())
            over.wait(config.heat_poll_seconds)
        sensor.close()

    thread = threading.Thread(target=watch, name="heat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(SECONDS_TO_END)
