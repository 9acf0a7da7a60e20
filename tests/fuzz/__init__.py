"""The CNI plugin under a fuzzer."""
