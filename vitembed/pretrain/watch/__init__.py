"""What a person sees while the encoder learns: scores, pictures, alarms, the report. Nothing here changes a run."""
