"""What several tests use: inputs, problems, child processes, the fuzzer."""
