"""Helpers of several tests: inputs, problems, child processes, the fuzzer."""
