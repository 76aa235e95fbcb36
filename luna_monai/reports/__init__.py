"""Pictures and pages for people: matplotlib figures and one self-contained HTML file."""
