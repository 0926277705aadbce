# Sign up with curl: sh curl.sh URL EMAIL PASSWORD, the code on a line of standard input.
users="$1/api/v1/users"
status() { curl --silent --output /dev/null --write-out '%{http_code}\n' "$@"; }
status --json "{\"email\": \"$2\", \"password\": \"$3\"}" "$users/register"
read -r code
status --user "$2:$3" --json "{\"code\": \"$code\"}" "$users/activate"
status --user "$2:$3" "$users/me"
