"""What asks a question: command line, studies, comparison, report."""
