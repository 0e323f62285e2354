"""Programs that quantize with one library each: `python -m truecast.calibration.workers.NAME JOB.json`."""
