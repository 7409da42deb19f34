"""From records to rows: values, intervals, differences, how far a model reads. No torch."""
