#!/bin/sh
# Makes one of everything into a folder: sh all.sh [FOLDER]
# Run again after an interruption, it goes on where it was.
set -eu
out=${1:-videos}
cd "$(dirname "$0")"
mkdir -p "$out"

keyface crop wall.jpg -o "$out/seen.png" --force
keyface animate wall.jpg note.m4a --keyframes-only --duration 2 -o "$out/wall.mp4"
keyface animate wall.jpg note.m4a --paste-back --restart --duration 2 -o "$out/wall.mp4" --force
keyface animate avatar.png speech.wav --fps 50 --size 320 --duration 2 -o "$out/smooth.gif" --force
keyface info "$out/wall.mp4"
keyface emotion preview curve.csv --audio speech.wav --portrait portrait.jpg -o "$out/curve.png" --force

# one model for all rows; 0 all made, 1 some failed, 2 no such list
if keyface batch jobs.csv --output-dir "$out" --report "$out/report.csv" --skip-existing; then
    echo "all made"
else
    echo "some failed, see $out/report.csv"
fi
