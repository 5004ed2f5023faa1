"""What an Understudy worker does. Imports no Celery: it runs from a REPL, a test or a script."""
