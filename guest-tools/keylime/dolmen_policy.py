"""Measured-boot policy for Keylime: the event log must replay to Dolmen's reference values.

Keylime checks the quote and its pins for PCR 17 and 18 by itself, but does not replay a log of these registers. The
policy's reference state is the content of Dolmen's reference-values.json. See docs/keylime.md.
"""

from keylime.mba.elchecking import policies, tests

REGISTERS = (17, 18)


class ReplaysTo(tests.Test):
    """The log has at least one bank of the reference, and every bank that it has replays to its values."""

    def __init__(self, banks):
        super().__init__()
        self.banks = banks

    def why_not(self, globs, subject):
        replayed = subject.get("pcrs", {})
        if not replayed:
            return "the log has no bank"
        for bank, registers in replayed.items():
            if bank not in self.banks:
                return f"the reference has no bank {bank}"
            for index in REGISTERS:
                told, wanted = value(registers, index), self.banks[bank][f"pcr{index}"].lower()
                if told is None or told.zfill(len(wanted)) != wanted:
                    return f"the log replays PCR {index} of {bank} to {told}, not to {wanted}"
        return ""


def value(registers, index):
    """A register's replayed value in hex: parsers of the log write it as a number or as a text."""
    found = registers.get(index, registers.get(str(index)))
    if isinstance(found, int):
        return f"{found:x}"
    return None if found is None else str(found).lower().removeprefix("0x")


class Dolmen(policies.Policy):
    """Compiles reference values into the test."""

    def get_relevant_pcrs(self):
        return frozenset(REGISTERS)

    def refstate_to_test(self, refstate):
        if refstate.get("format") != "dolmen-reference-values-1":
            return tests.RejectAll("the policy's reference state is no reference-values.json of Dolmen")
        return ReplaysTo({bank["bank"]: bank for bank in refstate["banks"]})


policies.register("dolmen", Dolmen())
