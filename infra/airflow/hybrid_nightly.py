"""Airflow DAGs of one task each: at two o'clock UTC the night before, as a job on the Ray cluster; tidying on Sundays.

The timetable with data intervals makes `ds` the day that has ended. Airflow's own retries start the same command again:
what is done is not done twice. Nights of the last week that were missed are done by `--catch-up`, which leaves those
alone that have rows; Airflow's own catch-up would do each night since `start_date` again. The worker needs this
package, and RAY_API_SERVER_ADDRESS, RAY_AUTH_MODE=token and RAY_AUTH_TOKEN in its environment; jobs have the nodes'
keys. A night asks for up to four GPUs, and waits for one: without any, leave out `--resources.gpu yes`.
"""

import pendulum
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG
from airflow.timetables.interval import CronDataIntervalTimetable

NIGHTLY = (
    'hybrid submit --submission-id "nightly-{{ ds }}" -- nightly --all-tasks '
    '--input "s3://lake/{task}/ds={ds}/*" --tables s3://lake/tables --ds "{{ ds }}" '
    "--catch-up 7 --resources.gpu yes --resources.max-actors 4"
)

TIDY = 'hybrid submit --submission-id "tidy-{{ ds }}" -- tables tidy --compact --tables s3://lake/tables'

with DAG(
    "hybrid_nightly",
    schedule=CronDataIntervalTimetable("0 2 * * *", timezone="UTC"),
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": pendulum.duration(minutes=10)},
):
    BashOperator(task_id="nightly", bash_command=NIGHTLY, append_env=True)

with DAG(
    "hybrid_tidy",
    schedule=CronDataIntervalTimetable("0 12 * * 0", timezone="UTC"),
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
):
    BashOperator(task_id="tidy", bash_command=TIDY, append_env=True)
