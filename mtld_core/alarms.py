"""What a run warns of while it trains: a collapse of latents, codes or actions, said once for as long as it
lasts.
"""

EARLY = 500  # steps: before that little has begun to vary, which is no collapse
LEAST_GAP = 0.05  # dB of action_shuffle_gap_db, below which actions do not matter


class Alarms:
    """`look` at every log line's values and every evaluation's figures; `present`: the lines that warn
    now.
    """

    def __init__(self, system, say):
        self.system, self.say, self._found = system, say, {}  # "log" or "judgement" -> its latest lines

    def look(self, at, figures, step=EARLY):
        """at: "log" or "judgement", whose earlier lines these replace. figures: dict; only its floats are
        looked at.
        """
        if step < EARLY:
            return
        figures = {name: value for name, value in figures.items() if isinstance(value, float)}
        lines = list(self.system.alarms(figures))
        if figures.get("action_shuffle_gap_db", LEAST_GAP) < LEAST_GAP:
            lines.append(
                f"the actions do not matter: those of other windows do as well, within {LEAST_GAP} dB"
            )
        for line in lines:
            if line not in self.present:
                self.say(f"warning: {line}")
        self._found[at] = lines

    @property
    def present(self):
        return list(dict.fromkeys(line for lines in self._found.values() for line in lines))
