# Sign up with HTTPie: sh httpie.sh URL EMAIL PASSWORD, the code on a line of standard input.
users="$1/api/v1/users"
status() { http --ignore-stdin --print=h "$@" | sed -n '1s/^[^ ]* \([0-9]*\).*/\1/p'; }
status POST "$users/register" "email=$2" "password=$3"
read -r code
status --auth "$2:$3" POST "$users/activate" "code=$code"
status --auth "$2:$3" "$users/me"
