"""From records to answers: keep them, summarise them, print them. No torch in here."""
