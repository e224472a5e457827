#!/bin/sh
# A backup of the installation of compose.yaml into a folder, and the way back to an empty one. It may run at any time;
# the database comes first: what it names is older than it.
#   infra/backup.sh save FOLDER
#   infra/backup.sh restore FOLDER
set -eu
usage() { echo "usage: infra/backup.sh save|restore FOLDER" >&2; exit 2; }
[ $# -eq 2 ] || usage
compose() { docker compose --file "$(dirname "$0")/compose.yaml" "$@"; }
case $1 in
save)
    [ ! -e "$2" ] || { echo "$2 is there already: name a new folder" >&2; exit 2; }
    umask 077
    mkdir -p "$2.part"
    compose exec -T database pg_dump --format=custom --username mlflow mlflow > "$2.part/mlflow.dump"
    compose run --rm -T backup save /artifacts s3://lake > "$2.part/objects.tar"
    mv "$2.part" "$2"
    ;;
restore)
    compose up --detach --wait s3 database
    there=$(compose exec -T database psql --tuples-only --no-align --username mlflow --dbname mlflow \
        --command "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
    [ "$there" -eq 0 ] || { echo "the database has tables already, and nothing was changed: a backup goes into an" \
        "installation that was not started yet" >&2; exit 2; }
    compose run --rm -T backup restore /artifacts s3://lake < "$2/objects.tar"
    compose exec -T database pg_restore --exit-on-error --single-transaction --username mlflow --dbname mlflow \
        < "$2/mlflow.dump"
    compose up --detach
    ;;
*) usage ;;
esac
