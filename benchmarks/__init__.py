"""`make bench`: ratios from one run, printed with the machine and everybody's durability settings."""
