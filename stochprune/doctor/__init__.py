"""The doctor: what works on this machine, what does not and why, and a self-test of every backend that works."""

from stochprune.doctor.examine import bug_report, examine
from stochprune.doctor.self_test import SelfTest, self_tests

__all__ = ["SelfTest", "bug_report", "examine", "self_tests"]
