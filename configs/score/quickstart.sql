-- How an analyst reads a scored run: any Parquet reader does it, here DuckDB.
SELECT task, labels, round(confidence, 2) AS confidence, explanation
FROM read_parquet('runs/quickstart/scored/data/*/*.parquet', hive_partitioning = true)
WHERE status = 'ok'
ORDER BY post_id, task
LIMIT 9;
