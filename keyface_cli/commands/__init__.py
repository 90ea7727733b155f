"""One file for each command: parse, check, call, report; no tensor here."""
