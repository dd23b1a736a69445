"""`causalfusion demo`: train on digits, show everything, write a report."""
