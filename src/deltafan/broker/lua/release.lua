-- A draining worker hands a running job back: another takes it at once, and no failure is charged.
-- KEYS  1 job  2 stream  3 takeover stream
-- ARGV  1 id  2 attempt  3 worker  4 group  5 model  6 usage of all attempts so far (JSON)
-- Gives released | cancelled | fenced | gone
local h = read_job(KEYS[1])
if not h then
  return 'gone'
end
if h.state ~= 'running' or h.attempt ~= ARGV[2] or h.owner ~= ARGV[3] then
  return 'fenced'
end
if h.cancel == '1' then
  return 'cancelled'
end
drop_entry(KEYS[2], ARGV[4], h.entry)
local entry = redis.call('XADD', KEYS[3], '*', 'id', ARGV[1], 'model', ARGV[5])
redis.call('HSET', KEYS[1], 'state', 'queued', 'owner', '', 'lost', 'handed_over', 'stream', KEYS[3], 'entry', entry,
  'usage', ARGV[6], 'usage_lost', '')
return 'released'
